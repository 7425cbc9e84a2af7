"""Types and shapes of elements and their parameters."""

from __future__ import annotations

from torch import Tensor

Params = Tensor | tuple[Tensor, ...]


def beside(mask: Tensor, value: Tensor) -> Tensor:
    """A mask of shape ``batch`` with dimensions of length 1 appended, as many as ``value`` has."""
    return mask.reshape((*mask.shape, *[1] * (value.ndim - mask.ndim)))
