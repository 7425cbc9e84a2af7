"""The settings of a convolution layer that determine what its kernel does."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from constrained.constraint.named_views import CONVOLUTIONS


@dataclass(frozen=True)
class ConvolutionSettings:
    """The settings of a convolution layer.

    Attributes:
        stride: the step of the kernel along each axis.
        dilation: the distance of neighbouring taps along each axis; 1 for a single tap.
        groups: into how many groups the channels are divided.
        padding_mode: ``"zeros"``, ``"circular"``, ``"reflect"`` or ``"replicate"``.
        surplus: by how many points an image would grow along each axis if the stride were 1.
    """

    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    padding_mode: str
    surplus: tuple[int, ...]


def settings_of(module: nn.Module, name: str) -> ConvolutionSettings | None:
    """The settings of a layer, or None if the tensor of this name is not a convolution kernel."""
    if name != "weight" or not isinstance(module, CONVOLUTIONS):
        return None
    # Transposed convolutions have padding as numbers only, and only with zeros.
    dilation = [d if k > 1 else 1 for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    spreads = [d * (k - 1) for d, k in zip(dilation, module.kernel_size, strict=True)]
    padding = module.padding
    if isinstance(padding, str):
        added = spreads if padding == "same" else [0] * len(spreads)
    else:
        added = [2 * p for p in padding]
    return ConvolutionSettings(
        tuple(module.stride),
        tuple(dilation),
        module.groups,
        module.padding_mode,
        tuple(a - s for a, s in zip(added, spreads, strict=True)),
    )


def taken_from(constraint: Any, **settings: tuple[Any, Any]) -> Any:
    """The constraint, with arguments that were left out taken from its layer.

    Args:
        constraint: each of the arguments is an attribute, None if it was left out.
        settings: for each argument, the layer's setting and the value that None stands for.

    Returns:
        The constraint itself if nothing changes, else a copy.

    Raises:
        ValueError: if an argument contradicts the layer.
    """
    learned: dict[str, Any] = {}
    for argument, (setting, default) in settings.items():
        given, found = _as_argument(getattr(constraint, argument)), _as_argument(setting)
        if given is None and found != default:
            learned[argument] = found
        elif given is not None and given != found:
            raise ValueError(
                f"{constraint!r}: {argument} must be that of the layer, {found!r}, got {given!r}; "
                "leave it out to take the layer's."
            )
    if not learned:
        return constraint
    fitted = copy.deepcopy(constraint)
    for argument, value in learned.items():
        setattr(fitted, argument, value)
    return fitted


def _as_argument(setting: Any) -> Any:
    """A setting as JSON would give it: one number if all are equal, else a list."""
    if not isinstance(setting, Sequence) or isinstance(setting, str):
        return setting
    numbers: list[Any] = list(setting)  # pyright: ignore[reportUnknownArgumentType] - of any kind
    return numbers[0] if len(set(numbers)) == 1 else numbers
