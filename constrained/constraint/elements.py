"""Types and shapes of elements and their parameters."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

Params = Tensor | tuple[Tensor, ...]


def unpack(params: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    """What a right inverse returned, one tensor or a sequence of several, as a tuple."""
    return (params,) if isinstance(params, Tensor) else tuple(params)


def beside(mask: Tensor, value: Tensor) -> Tensor:
    """A mask of shape ``batch`` with dimensions of length 1 appended, as many as ``value`` has."""
    return mask.reshape((*mask.shape, *[1] * (value.ndim - mask.ndim)))
