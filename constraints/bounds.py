"""Numbers among the arguments of constraints, checked."""

from __future__ import annotations

import math
from numbers import Real

import torch


def least_positive(dtype: torch.dtype) -> float:
    """Where maps onto an open set end beside a bound of zero: the root of the smallest number.

    There a logarithm and a reciprocal, and the derivatives of both, are finite still. Next to the
    smallest number itself they overflow, and times the vanishing derivative of the map make NaN.
    """
    return math.sqrt(torch.finfo(dtype).tiny)


def checked_bound(constraint: str, bound: float, name: str = "bound") -> float:
    """A finite number, or an error that names the argument."""
    if not isinstance(bound, Real) or isinstance(bound, bool):
        raise TypeError(f"{constraint}: {name} must be a number, got {bound!r}.")
    if not math.isfinite(bound):
        raise ValueError(f"{constraint}: {name} must be finite, got {bound!r}.")
    return float(bound)


def checked_positive(constraint: str, bound: float, name: str = "bound") -> float:
    """A positive finite number, or an error that names the argument."""
    if not isinstance(bound, Real) or isinstance(bound, bool):
        raise TypeError(f"{constraint}: {name} must be a number, got {bound!r}.")
    if not 0 < bound < math.inf:
        raise ValueError(f"{constraint}: {name} must be positive and finite, got {bound!r}.")
    return float(bound)


def checked_rank(constraint: str, rank: int) -> int:
    """An integer from 1 on."""
    if not isinstance(rank, int) or isinstance(rank, bool):
        raise TypeError(f"{constraint}: rank must be an integer, got {rank!r}.")
    if rank < 1:
        raise ValueError(f"{constraint}: rank must be at least 1, got {rank}.")
    return rank
