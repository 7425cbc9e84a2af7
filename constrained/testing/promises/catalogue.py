"""Every registered constraint, on linear layers: what a promise about the catalogue is tried on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import nn

from constrained import constrain, get, names


def configurations() -> list[tuple[str, dict[str, Any], tuple[int, ...]]]:
    """Each registered name with each set of arguments in its examples, and one event shape."""
    found: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {}
    for name in names():
        for arguments, event in get(name).examples:
            found.setdefault(f"{name} {arguments}", (name, dict(arguments), event))
    return list(found.values())


def every_constraint(*shapes: tuple[int, int]) -> pytest.MarkDecorator:
    """Parametrize a test by ``name``, ``arguments`` and each of the ``shapes`` that is admissible.

    Where none is, the shape is that of the example.
    """
    cases = [
        pytest.param(name, arguments, shape, id=f"{name}{i}-{shape[0]}x{shape[1]}")
        for i, (name, arguments, event) in enumerate(configurations())
        for shape in admissible(name, arguments, shapes) or [matrix(event)]
    ]
    return pytest.mark.parametrize(("name", "arguments", "shape"), cases)


def admissible(
    name: str, arguments: Mapping[str, Any], shapes: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Those shapes that can carry the constraint."""
    return [shape for shape in shapes if _fits(name, arguments, shape)]


def _fits(name: str, arguments: Mapping[str, Any], shape: tuple[int, int]) -> bool:
    try:
        get(name)(**arguments).check_shape(shape)
    except ValueError:
        return False
    return True


def matrix(event: tuple[int, ...]) -> tuple[int, int]:
    """An event shape with batch dimensions in front, as the weight of a linear layer has two."""
    rows, columns = (3, 3, *event)[-2:]
    return rows, columns


def linear(
    name: str, arguments: Mapping[str, Any], shape: tuple[int, int], **options: Any
) -> nn.Linear:
    """A linear layer whose weight, of the given shape, is constrained."""
    layer = nn.Linear(shape[1], shape[0], bias=False, **options)
    constrain(layer, "weight", get(name)(**arguments))
    return layer


class Everything(nn.Module):
    """One small constrained layer for each configuration of the catalogue."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(dict(_layers()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The sum of all layers' outputs, ``x`` cut to each one's size."""
        return sum(  # type: ignore[return-value]
            torch.tanh(layer(x[:, : layer.in_features])).mean(1) for layer in self.layers.values()
        )


def _layers() -> Iterator[tuple[str, nn.Linear]]:
    for i, (name, arguments, event) in enumerate(configurations()):
        for shape in admissible(name, arguments, [(4, 4)]) or [matrix(event)]:
            yield f"{name}{i}", linear(name, arguments, shape)
