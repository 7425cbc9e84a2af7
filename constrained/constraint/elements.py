"""The elements of a batch, and the parameters that they are made of."""

from __future__ import annotations

from torch import Tensor

Params = Tensor | tuple[Tensor, ...]


def beside(mask: Tensor, value: Tensor) -> Tensor:
    """A mask of shape ``batch`` with as many dimensions as ``value``."""
    return mask.reshape((*mask.shape, *[1] * (value.ndim - mask.ndim)))
