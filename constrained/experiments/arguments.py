"""Checks of the arguments of what is built in, with one sentence for each error."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from constrained.constraint.plain_data import short


def whole(name: str, value: Any, least: int) -> int:
    """A whole number, at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name} must be a whole number, got {short(value)}.")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}.")
    return value


def number(name: str, value: Any, least: float, most: float = math.inf) -> float:
    """A number from ``least`` to ``most``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{name} must be a number, got {short(value)}.")
    if not least <= value:
        raise ValueError(f"{name} must be at least {least}, got {value}.")
    if not value <= most:
        raise ValueError(f"{name} must be at most {most}, got {value}.")
    return value


def one_of(name: str, value: Any, known: Iterable[str]) -> str:
    """One of several words."""
    if value not in tuple(known):
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {short(value)}.")
    return value
