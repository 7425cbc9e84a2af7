"""Ctrl-C waits while a model is being changed.

Python may raise KeyboardInterrupt between any two instructions: while something is being undone,
too, or between the start of a ``with`` block and its first line. So code that changes a model
defers it until the change is done. It allows it at points in between where the model is consistent,
or where the change would be undone.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import torch


class defer_interrupts:
    """A ``with`` block in which Ctrl-C waits: its handler is called at the end of the block.

    In other threads than the main one nothing is done, since signals interrupt the main thread
    only; nor if the handler is not a Python function. A block inside another one passes Ctrl-C on
    to the outer one.

    Args:
        always_in: functions during which Ctrl-C waits even while `waits` is False.

    Attributes:
        waits: whether Ctrl-C waits. It is set to False while the user's code runs in the block.
    """

    def __init__(self, always_in: Sequence[Callable[..., Any]] = ()) -> None:
        self.waits = True
        self._always_in = always_in
        self._before: Any = None
        self._is_due = self._is_over = False

    def __enter__(self) -> None:
        if torch.compiler.is_compiling():
            return
        if threading.current_thread() is not threading.main_thread():
            return
        before = signal.getsignal(signal.SIGINT)
        if callable(before):
            self._before = before
            signal.signal(signal.SIGINT, self._take)

    def __exit__(self, *error: object) -> None:
        if self._before is None:
            return
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and signal.getsignal(signal.SIGINT) == self._take:
            signal.signal(signal.SIGINT, self._before)
        # The handler may be called once more, if a block that was entered later is left after this
        # one, if somebody installs it again, or if another thread left this block. From now on it
        # only calls the one before.
        self._is_over = True
        if self._is_due and is_main:
            self._is_due = False
            self._before(signal.SIGINT, sys._getframe())

    def _take(self, number: int, frame: FrameType | None) -> None:
        if not self._is_over and (self.waits or self._is_inside(frame)):
            self._is_due = True
        else:
            self._before(number, frame)

    def _is_inside(self, frame: FrameType | None) -> bool:
        codes = [function.__code__ for function in self._always_in]
        while frame is not None:
            if frame.f_code in codes:
                return True
            frame = frame.f_back
        return False


def allow_interrupt() -> None:
    """Let Ctrl-C interrupt here, if it was pressed: the model is whole, or will be put back."""
    if torch.compiler.is_compiling():
        return
    if threading.current_thread() is not threading.main_thread():
        return
    handler: Any = signal.getsignal(signal.SIGINT)
    is_due = False
    while isinstance(block := getattr(handler, "__self__", None), defer_interrupts):
        # Cleared only if set: Ctrl-C may come between two lines, and must not be lost.
        if block._is_due:
            block._is_due, is_due = False, True
        handler = block._before
    if is_due:
        handler(signal.SIGINT, sys._getframe())
