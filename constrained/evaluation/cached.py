"""`cached`: the context manager in which the values of all parametrizations are reused."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar

from constrained.torch_internals.modules import torch_cache


class _Block:
    """One ``with cached():`` that has been entered."""

    __slots__ = ("is_open",)

    def __init__(self) -> None:
        self.is_open = True


_blocks: ContextVar[tuple[_Block, ...]] = ContextVar("constrained_cached", default=())


@contextmanager
def cached() -> Generator[None]:
    """Inside, values of *all* parametrizations are reused, foreign modules included.

    Values of a `Constraint` are reused everywhere, with no context manager. A foreign
    ``nn.Module`` may be random or write state when it runs, so its value is reused only here,
    and only while nothing that it depends on changes. The context belongs to one thread or
    asyncio task; nested contexts share their values.
    """
    block = _Block()
    _blocks.set((*_blocks.get(), block))
    try:
        yield
    finally:
        # Marked as closed, and not reset by a token: a task inherits the blocks that it was started
        # in, and a generator may be left in another order than it was entered, or in another
        # context.
        block.is_open = False
        _blocks.set(tuple(b for b in _blocks.get() if b.is_open))


def active_context() -> object | None:
    """An object for the outermost `cached` block, torch's or the one above; None outside of one."""
    of_torch = torch_cache()
    if of_torch is not None:
        return of_torch
    return next((block for block in _blocks.get() if block.is_open), None)
