"""Error messages that begin with the path of the tensor."""

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

#: Types of error that this package raises. Each is constructed from a message alone.
_OWN_TYPES = (ValueError, TypeError, InfeasibleError, OutOfRangeError, SpecError, UnknownNameError)


#: This package and its catalogue.
_PACKAGES = ("constrained", "constraints")


class ModuleKeyError(KeyError):
    """A `KeyError` that a foreign module raised, with a sentence for its message."""

    def __str__(self) -> str:
        # KeyError would show the repr of the sentence.
        return str(self.args[0])


#: Types of error that a foreign module may raise and that can be constructed from a message alone,
#: and the types that are raised instead.
_FOREIGN_TYPES: dict[type[Exception], type[Exception]] = {
    RuntimeError: RuntimeError,
    torch.OutOfMemoryError: torch.OutOfMemoryError,
    NotImplementedError: NotImplementedError,
    AssertionError: AssertionError,
    AttributeError: AttributeError,
    IndexError: IndexError,
    KeyError: ModuleKeyError,
}


def raise_failed(path: str, module: nn.Module, error: Exception) -> NoReturn:
    """Raise an error of foreign code again, with a message that begins with the tensor's path.

    Args:
        path: of the tensor.
        module: the constraint or foreign module that was called.
        error: what it raised.
    """
    if isinstance(error, (ValueError, TypeError)) and isinstance(module, Constraint):
        raise with_path(path, error) from error
    reason = f"{type(module).__name__} raised {type(error).__name__}: {error}"
    if isinstance(error, (ValueError, TypeError)):
        raise with_path(path, error, reason) from error
    kind = _FOREIGN_TYPES.get(type(error))
    if kind is None:
        # How an error of another type is constructed is unknown.
        error.add_note(f"'{path}': {type(module).__name__} raised this.")
        raise error
    raise kind(_sentence(path, reason)) from error


def is_own(error: Exception) -> bool:
    """Whether an error was raised in this package or its catalogue, not in code that these call."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return frames[-1].f_globals.get("__name__", "").partition(".")[0] in _PACKAGES


def with_path(
    path: str, error: ValueError | TypeError, reason: str | None = None
) -> ValueError | TypeError:
    """The same error, with a message that begins with the path of the tensor.

    Args:
        path: of the tensor.
        error: what was raised.
        reason: the rest of the message; the message of the error if None.
    """
    kind = type(error)
    if kind not in _OWN_TYPES:
        kind = SpecError if isinstance(error, ValueError) else TypeError
    return kind(_sentence(path, str(error) if reason is None else reason))


def _sentence(path: str, reason: str) -> str:
    # A foreign module may put a whole tensor into its message.
    return f"'{path}': {reason if len(reason) <= 500 else reason[:497] + '...'}"
