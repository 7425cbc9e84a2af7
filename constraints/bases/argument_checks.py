"""Checks of constructor arguments: each returns the checked value or names what is wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from constrained.constraint.plain_data import short

#: What `checked_positive` takes: annotations tell the schema of configs what constructors check.
PositiveNumber = Annotated[float, Gt(0)]

#: What `checked_rank` and `check_whole` take.
Count = Annotated[int, Ge(1)]


def checked_number(constraint: str, number: Any, name: str) -> float:
    """A real number as a float, or a `TypeError` that names the argument."""
    if not isinstance(number, Real) or isinstance(number, bool):  # pyright: ignore[reportUnnecessaryIsInstance] - a bool is registered as a Real
        raise TypeError(f"{constraint}: {name} must be a number, got {short(number)}.")
    try:
        return float(number)
    except OverflowError:
        # Python's whole numbers may have any number of digits.
        return math.inf if number > 0 else -math.inf  # pyright: ignore[reportOperatorIssue] - every Real is ordered


def checked_bound(constraint: str, bound: float, name: str = "bound") -> float:
    """A finite number, or an error that names the argument."""
    number = checked_number(constraint, bound, name)
    if not math.isfinite(number):
        raise ValueError(f"{constraint}: {name} must be finite, got {short(bound)}.")
    return number


def checked_positive(constraint: str, bound: float, name: str = "bound") -> float:
    """A positive finite number, or an error that names the argument."""
    number = checked_number(constraint, bound, name)
    if not 0 < number < math.inf:
        raise ValueError(f"{constraint}: {name} must be positive and finite, got {short(bound)}.")
    return number


def check_order(constraint: str, low: float, high: float) -> None:
    """Raise a `ValueError` unless the first number is less than the second."""
    if not low < high:
        raise ValueError(
            f"{constraint}: low must be less than high, got low={low!r} and high={high!r}."
        )


def checked_rank(constraint: str, rank: int) -> int:
    """A whole number from 1 on, or an error."""
    if not is_whole(rank):
        raise TypeError(f"{constraint}: rank must be an integer, got {short(rank)}.")
    if rank < 1:
        raise ValueError(f"{constraint}: rank must be at least 1, got {short(rank)}.")
    return rank


def check_whole(constraint: str, name: str, numbers: Any, least: int = 1) -> None:
    """Raise unless an argument is a whole number from ``least`` on, or a list of such."""
    listed: Any = numbers if isinstance(numbers, list | tuple) else [numbers]  # pyright: ignore[reportUnknownVariableType] - the loop checks the elements
    for number in listed:
        if not is_whole(number):
            raise TypeError(f"{constraint}: {name} must be a whole number, got {short(number)}.")
        if number < least:
            raise ValueError(f"{constraint}: {name} must be at least {least}, got {short(number)}.")


def is_whole(number: Any) -> bool:
    """Whether a number is an integer; truth values are not."""
    return isinstance(number, int) and not isinstance(number, bool)


def as_tensor(given: Tensor | Sequence[Any]) -> Tensor:
    """A copy of a tensor, or a tensor made from nested lists.

    Raises:
        TypeError, ValueError or RuntimeError: if it is neither, as `torch.as_tensor` does.
    """
    # Under `torch.device("meta")` lists still make a tensor with values.
    device = given.device if isinstance(given, Tensor) else "cpu"
    return torch.as_tensor(given, device=device).detach().clone()
