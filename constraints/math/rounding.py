"""Numbers near the end of an open interval: how near they may come, and a clamp to that."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from constraints.math.autograd import needs_derivative


def least_positive(dtype: torch.dtype) -> float:
    """The least value of maps onto the positive numbers: the root of the smallest normal number.

    There, logarithm and reciprocal and the derivatives of both are still finite. At the smallest
    normal number itself they overflow, and their product with the vanishing derivative of the map
    is NaN. In float16 that root is 0.008, which is too large. There it is the smallest normal
    number itself, where the logarithm, its derivative and the reciprocal are finite.
    """
    tiny = torch.finfo(dtype).tiny
    return tiny if dtype == torch.float16 else math.sqrt(tiny)


def kept(value: Tensor, low: float | None, high: float | None = None) -> Tensor:
    """The value clamped to two bounds, with the gradient of the value itself."""
    if not needs_derivative(value):
        return value.clamp(low, high)
    return value + (value.clamp(low, high) - value).detach()
