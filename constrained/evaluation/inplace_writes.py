"""Values that were returned to a reader, and whether somebody wrote into them since."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from constrained.evaluation.tensor_state import TensorState
from constrained.torch_internals.modes import is_transformed, unseen
from constrained.torch_internals.tensors import version

_latest = threading.local()

#: How many values that were replaced are watched.
_EARLIER = 4


class ValueWrittenError(RuntimeError):
    """Somebody wrote into a value that was returned. Whoever catches this says how to cure it."""


class ReturnedValue:
    """A value that somebody has read.

    A write that autograd recorded is a computation with the value. Any other write was meant to
    last, but the next evaluation would undo it. So the next read raises an error.

    Args:
        value: what was evaluated.
        tracked: what a read returns where gradients are recorded.

    Attributes:
        state: what the value was, of a tensor with the same memory that nobody else has.
        tracked: as above.
        plain: what a read returns where no gradients are recorded, once somebody has read it so.
        node: the end of the graph of ``tracked``, which ``detach_()`` cuts off.
        is_pure: whether hooks on it belong to all values of the tensor.
        is_alias: whether it lies in the memory of an original, so that a write is a write of that.
    """

    __slots__ = ("is_alias", "is_pure", "node", "plain", "state", "tracked")

    def __init__(self, value: Tensor) -> None:
        self.state = TensorState(value.detach())
        self.tracked = value
        self.plain: Tensor | None = None
        self.node: Any = value.grad_fn
        self.is_pure = self.is_alias = False

    def read(self, on: nn.Module) -> Tensor | None:
        """The value for one more reader, if it may be reused; else None."""
        del on
        return None

    def is_written(self) -> bool:
        """Whether the value holds other numbers now, in its own memory or in what replaced that."""
        if not self.state.is_unchanged():
            return True
        # The same numbers in other memory are no write, but a change of the memory format. Another
        # shape with as many entries is none either.
        state, returned = self.state, [t for t in (self.tracked, self.plain) if t is not None]
        moved = [t for t in returned if t.data_ptr() != state.address or t.nbytes != state.nbytes]
        compare = partial(unseen, _are_equal) if is_transformed() else _are_equal
        return not all(compare(t, state.tensor) for t in moved)

    def is_recorded(self) -> bool:
        """Whether autograd has recorded what was done to the value."""
        return self.tracked.grad_fn is not self.node or (
            self.plain is not None and self.plain.requires_grad
        )

    def is_lost(self) -> bool:
        """Whether somebody wrote into the value, which the next evaluation would undo."""
        return not self.state.is_moved() and self.is_written() and not self.is_recorded()


class UnstoredValue(ReturnedValue):
    """A value that is not reused: the next read evaluates again.

    The value itself is held only until the next one, of any tensor, is returned in the same thread,
    so that at most one graph is kept alive by this. After that its memory is watched.
    """

    __slots__ = ("__weakref__", "_is_lost", "_is_watched")

    def __init__(self, value: Tensor) -> None:
        super().__init__(value)
        self._is_lost, self._is_watched = False, True
        latest = getattr(_latest, "value", None)
        previous = latest and latest()
        if previous is not None:
            previous.let_go()
        _latest.value = weakref.ref(self)

    def let_go(self) -> None:
        """Release the value and its graph."""
        self._is_lost = self.is_lost()
        self._is_watched = not (self._is_lost or self.is_recorded())
        self.tracked, self.node = self.state.tensor, None

    def is_lost(self) -> bool:
        """Whether somebody wrote into the value, which the next evaluation would undo."""
        return self._is_lost or (self._is_watched and super().is_lost())


class EarlierValues:
    """Values that readers may still hold after others have replaced them.

    A write into one of them has no effect. Only the last few are watched, by weak references, so
    that none is kept alive.
    """

    __slots__ = ("_known",)

    def __init__(self) -> None:
        # What was returned with and without gradients, the version at which it was replaced, and
        # the identity of its node. A tensor holds its node, so that no other one has that identity.
        self._known: list[tuple[weakref.ref[Tensor], weakref.ref[Tensor] | None, int, int]] = []

    def note(self, returned: ReturnedValue) -> None:
        """Watch a value that is being replaced, unless somebody has written into it already."""
        state, plain, known = returned.state, returned.plain, self._known
        before = state.version
        if before is None or before != version(state.tensor):
            return
        if len(known) >= _EARLIER:
            del known[0]
        reader = None if plain is None else weakref.ref(plain)
        known.append((weakref.ref(returned.tracked), reader, before, id(returned.node)))

    def take_written(self) -> bool:
        """Whether one of them was written since this was asked last, without autograd's record."""
        known, self._known, is_written = self._known, [], False
        for entry in known:
            tracked, plain, before, node = entry[0](), entry[1] and entry[1](), *entry[2:]
            tensor = plain if tracked is None else tracked
            if tensor is None:
                continue
            if version(tensor) == before:
                self._known.append(entry)
            # As in `ReturnedValue.is_recorded`.
            elif (tracked is None or id(tracked.grad_fn) == node) and not (
                plain is not None and plain.requires_grad
            ):
                is_written = True
        return is_written


def writes_are_noticed(value: Tensor, sources: Iterable[Tensor]) -> bool:
    """Whether a write into a value is noticed, and is not a write of what it is computed from."""
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
        type(t) in (Tensor, nn.Parameter)
        and t.layout is torch.strided
        and t.untyped_storage().data_ptr() == place
        for t in sources
    )


def _are_equal(tensor: Tensor, value: Tensor) -> bool:
    return tensor.shape == value.shape and torch.equal(tensor.detach(), value)
