"""Numbers among the arguments of constraints, checked."""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor

from constrained.constraint.plain_data import short
from constraints.math.autograd import needs_derivative


def least_positive(dtype: torch.dtype) -> float:
    """Where maps onto an open set end beside zero: the root of the smallest number.

    There a logarithm and a reciprocal, and the derivatives of both, are finite still. Next to the
    smallest number itself they overflow, and times the vanishing derivative of the map make NaN.
    The range of float16 is too short for that, its root being 0.008: there it is the smallest
    normal number, with a logarithm, its derivative and a reciprocal.
    """
    tiny = torch.finfo(dtype).tiny
    return tiny if dtype == torch.float16 else math.sqrt(tiny)


def kept(value: Tensor, low: float | None, high: float | None = None) -> Tensor:
    """The value between two bounds, with the gradient of the value itself."""
    if not needs_derivative(value):
        return value.clamp(low, high)
    return value + (value.clamp(low, high) - value).detach()


def checked_bound(constraint: str, bound: float, name: str = "bound") -> float:
    """A finite number, or an error that names the argument."""
    number = _number(constraint, bound, name)
    if not math.isfinite(number):
        raise ValueError(f"{constraint}: {name} must be finite, got {short(bound)}.")
    return number


def checked_positive(constraint: str, bound: float, name: str = "bound") -> float:
    """A positive finite number, or an error that names the argument."""
    number = _number(constraint, bound, name)
    if not 0 < number < math.inf:
        raise ValueError(f"{constraint}: {name} must be positive and finite, got {short(bound)}.")
    return number


def _number(constraint: str, bound: float, name: str) -> float:
    if not isinstance(bound, Real) or isinstance(bound, bool):
        raise TypeError(f"{constraint}: {name} must be a number, got {short(bound)}.")
    try:
        return float(bound)
    except OverflowError:
        # A whole number may have any number of digits.
        return math.inf if bound > 0 else -math.inf


def checked_rank(constraint: str, rank: int) -> int:
    """An integer from 1 on."""
    if not isinstance(rank, int) or isinstance(rank, bool):
        raise TypeError(f"{constraint}: rank must be an integer, got {short(rank)}.")
    if rank < 1:
        raise ValueError(f"{constraint}: rank must be at least 1, got {short(rank)}.")
    return rank
