"""Whose line a warning is about."""

from __future__ import annotations

import sys


def frames_to_the_caller() -> int:
    """The ``stacklevel`` of the function that called this package, for who calls this."""
    level, frame = 1, sys._getframe(1)
    package = __name__.partition(".")[0]
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(
        (f"{package}.", "torch.nn.modules")
    ):
        level, frame = level + 1, frame.f_back
    return level
