"""Errors whose sentence begins with the path of the tensor."""

from __future__ import annotations

import traceback
from typing import NoReturn

import torch
from torch import nn

from constrained.constraint.base import Constraint
from constrained.constraint.errors import (
    InfeasibleError,
    OutOfRangeError,
    SpecError,
    UnknownNameError,
)

#: Our errors: each is made of one sentence.
_OURS = (ValueError, TypeError, InfeasibleError, OutOfRangeError, SpecError, UnknownNameError)


#: The packages whose errors are ours.
_PACKAGES = ("constrained", "constraints")


class ModuleKeyError(KeyError):
    """A `KeyError` of a foreign module, with a sentence."""

    def __str__(self) -> str:
        # KeyError would show the repr of the sentence.
        return str(self.args[0])


#: Errors of foreign modules that can be made of one sentence too, and the type that is raised.
_THEIRS: dict[type[Exception], type[Exception]] = {
    RuntimeError: RuntimeError,
    torch.OutOfMemoryError: torch.OutOfMemoryError,
    NotImplementedError: NotImplementedError,
    AssertionError: AssertionError,
    AttributeError: AttributeError,
    IndexError: IndexError,
    KeyError: ModuleKeyError,
}


def raise_failed(path: str, module: nn.Module, error: Exception) -> NoReturn:
    """Raise an error of foreign code again, its sentence led by the path of the tensor.

    Args:
        path: of the tensor.
        module: the constraint or foreign module that was called.
        error: what it raised.
    """
    if isinstance(error, (ValueError, TypeError)) and isinstance(module, Constraint):
        raise named(path, error) from error
    reason = f"{type(module).__name__} raised {type(error).__name__}: {error}"
    if isinstance(error, (ValueError, TypeError)):
        raise named(path, error, reason) from error
    kind = _THEIRS.get(type(error))
    if kind is None:
        # The constructor of another type is unknown.
        error.add_note(f"'{path}': {type(module).__name__} raised this.")
        raise error
    raise kind(_sentence(path, reason)) from error


def is_ours(error: Exception) -> bool:
    """Whether an error was raised in this package or its catalogue, not in code that these call."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return frames[-1].f_globals.get("__name__", "").partition(".")[0] in _PACKAGES


def named(
    path: str, error: ValueError | TypeError, reason: str | None = None
) -> ValueError | TypeError:
    """The same error, its sentence led by the path of the tensor.

    Args:
        path: of the tensor.
        error: what was raised.
        reason: the sentence; that of the error if None.
    """
    kind = type(error)
    if kind not in _OURS:
        kind = SpecError if isinstance(error, ValueError) else TypeError
    return kind(_sentence(path, str(error) if reason is None else reason))


def _sentence(path: str, reason: str) -> str:
    # A foreign module may put a whole tensor into its message.
    return f"'{path}': {reason if len(reason) <= 500 else reason[:497] + '...'}"
