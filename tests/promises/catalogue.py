"""Every registered constraint on linear layers, for the promises about the whole catalogue."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import nn

from constrained import constrain, get, names


def configurations() -> list[tuple[str, dict[str, Any], tuple[int, ...]]]:
    """Each registered name, with each choice of arguments in its examples and one event shape."""
    found: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {}
    for name in names():
        for arguments, event in get(name).examples:
            found.setdefault(f"{name} {arguments}", (name, dict(arguments), event))
    return list(found.values())


def every_constraint(*shapes: tuple[int, ...]) -> pytest.MarkDecorator:
    """Parametrize a test by ``name``, ``arguments`` and each of the ``shapes`` that is allowed.

    If none of them is, the shape is that of the example.
    """
    cases = [
        pytest.param(name, arguments, shape, id=f"{name}{i}-{'x'.join(map(str, shape))}")
        for i, (name, arguments, event) in enumerate(configurations())
        for shape in admissible(name, arguments, event, shapes)
    ]
    return pytest.mark.parametrize(("name", "arguments", "shape"), cases)


def admissible(
    name: str,
    arguments: Mapping[str, Any],
    event: tuple[int, ...],
    shapes: Sequence[tuple[int, ...]],
) -> list[tuple[int, ...]]:
    """The shapes that the constraint allows; if none, a batch of events, or one event."""
    fitting = [shape for shape in shapes if _fits(name, arguments, shape)]
    batch = (3, 3, *event)[-2:] if len(event) < 2 else event
    return fitting or [batch if _fits(name, arguments, batch) else event]


def _fits(name: str, arguments: Mapping[str, Any], shape: tuple[int, ...]) -> bool:
    try:
        get(name)(**arguments).check_shape(shape)
    except ValueError:
        return False
    return True


class Flattened(nn.Module):
    """A linear layer whose weight is a tensor of any shape, viewed as a matrix."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape, dtype=dtype) / 4)
        self.out_features = shape[0] if len(shape) > 1 else 1
        self.in_features = self.weight.numel() // self.out_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x W'``, with W the weight as a matrix of ``out_features`` rows."""
        return nn.functional.linear(x, self.weight.reshape(self.out_features, self.in_features))


def plain(shape: tuple[int, ...], dtype: torch.dtype | None = None) -> Any:
    """A layer without a bias, whose weight has the given shape."""
    if len(shape) == 2:
        return nn.Linear(shape[1], shape[0], bias=False, dtype=dtype)
    return Flattened(shape, dtype)


def linear(
    name: str,
    arguments: Mapping[str, Any],
    shape: tuple[int, ...],
    dtype: torch.dtype | None = None,
) -> Any:
    """The same with the weight constrained."""
    layer = plain(shape, dtype)
    constrain(layer, "weight", get(name)(**arguments))
    return layer


class Everything(nn.Module):
    """One small constrained layer for each configuration of the catalogue."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(dict(_layers()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The sum of all layers' outputs, ``x`` cut to each one's size."""
        layers: Any = self.layers.values()
        outputs = [torch.tanh(layer(x[:, : layer.in_features])).mean(1) for layer in layers]
        return torch.stack(outputs).sum(0)


def _layers() -> Iterator[tuple[str, nn.Module]]:
    for i, (name, arguments, event) in enumerate(configurations()):
        for shape in admissible(name, arguments, event, [(4, 4)]):
            yield f"{name}{i}", linear(name, arguments, shape)
