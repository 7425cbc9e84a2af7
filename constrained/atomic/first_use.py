"""Functions that run once, as soon as the process has a constrained tensor.

Hooks that torch calls for every optimizer are registered only then.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

_lock = threading.RLock()

_callbacks: list[Callable[[], None]] = []


def at_first_use(function: Callable[[], None]) -> None:
    """Call a function once, as soon as there is a constrained tensor."""
    _callbacks.append(function)


def note_use() -> None:
    """Tell that there is a constrained tensor."""
    if _callbacks:
        with _lock:
            while _callbacks:
                _callbacks.pop()()
