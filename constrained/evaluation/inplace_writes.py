"""Values that were handed out without being stored, and whether somebody wrote into them."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from constrained.evaluation.tensor_state import TensorState

_latest = threading.local()


class HandedOut:
    """A value that is evaluated anew for its next reader, who would not see what was written.

    What autograd recorded is a computation with the value. Any other write was meant to last.

    The value itself is held only until the next one, of any tensor, is handed out in the same
    thread, so that at most one graph is kept alive by this; after that its memory is watched.

    Args:
        value: what is handed out.
    """

    __slots__ = ("__weakref__", "_lost", "_node", "_seen", "_value")

    def __init__(self, value: Tensor) -> None:
        latest = getattr(_latest, "record", None)
        previous = latest and latest()
        if previous is not None:
            previous.let_go()
        _latest.record = weakref.ref(self)
        self._lost = False
        self._value: Any = value
        self._node = value.grad_fn
        self._seen: TensorState | None = TensorState(value.detach())

    def let_go(self) -> None:
        """Hold on to the value, and its graph, no longer."""
        if self._value is None:
            return
        self._lost = self.is_lost()
        if self._lost or self._is_recorded():
            self._seen = None
        self._value = self._node = None

    def is_lost(self) -> bool:
        """Whether somebody wrote into the value, to no lasting effect."""
        value, seen = self._value, self._seen
        if self._lost or seen is None or seen.is_moved():
            return self._lost
        if value is None:
            return not seen.is_untouched()
        written = value.data_ptr() != seen.address or not seen.is_untouched()
        return written and not self._is_recorded()

    def _is_recorded(self) -> bool:
        return self._value.grad_fn is not self._node


def can_be_watched(value: Tensor, sources: Iterable[Tensor]) -> bool:
    """Whether a write into a value can be seen, and is not a write of what it is computed from."""
    return (
        type(value) is Tensor
        and value.layout is torch.strided
        and not value.is_meta
        and not shares_memory(value, sources)
    )


def shares_memory(value: Tensor, sources: Iterable[Tensor]) -> bool:
    """Whether a tensor lies in the memory of one of these."""
    place = value.untyped_storage().data_ptr()
    return any(
        type(t) in (Tensor, torch.nn.Parameter)
        and t.layout is torch.strided
        and t.untyped_storage().data_ptr() == place
        for t in sources
    )
