"""Whether a tensor still holds the numbers that it held when a value was computed from it."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from constrained.evaluation.events import Events, moment
from constrained.torch_internals.tensors import version

_is_recording = torch.is_grad_enabled

#: Tensors of so many entries are compared entry by entry at each read.
_WHOLE = 4096

#: Of larger ones at least so many are, and the sums of all, in so many columns, after an event.
_SAMPLES, _COLUMNS = 32, 509

#: The bytes that a processor fetches at once.
_LINE = 64


#: By the size of an entry in bytes, as what numpy reads it.
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


# ---------------------------------------------------------------------------------- one tensor


class TensorState:
    """What a tensor was when a value was computed from it, or handed out.

    A version counter misses what is written through ``tensor.data``, or by numpy. So the memory is
    looked at too. On the CPU a small tensor is compared whole at each read. Of a large one some
    entries are compared at each read, and column sums of all of them at the first read after an
    event that writes follow (see `expect_writes`). On other devices, where to look is to wait, the
    sums are compared once after each backward pass, against those at its time.

    Args:
        tensor: any.
        summed: whether to sum a large tensor, so that all of it can be compared later on.

    Attributes:
        matches: whether those entries that are compared at each read are what they were.
    """

    __slots__ = (
        "_memory",
        "_moment",
        "_sums",
        "address",
        "is_foreign",
        "look",
        "matches",
        "numel",
        "requires_grad",
        "strides",
        "tensor",
        "version",
    )

    def __init__(self, tensor: Tensor, *, summed: bool = False) -> None:
        self.tensor = tensor
        self.address = tensor.data_ptr()
        # With the strides, the number of entries tells the shape.
        self.strides, self.numel = tensor.stride(), tensor.numel()
        self.requires_grad = tensor.requires_grad
        self._memory = _memory(tensor)
        self.look = _look_at(self._memory, tensor)
        # Whoever has lent torch its memory writes whenever it likes.
        self.is_foreign = not tensor.untyped_storage().resizable()
        self._note(summed)

    def _note(self, summed: bool) -> None:
        # Inference tensors keep no count, and serve inference mode only.
        self.version = None if self.tensor.is_inference() else version(self.tensor)
        self._moment = moment()
        self._sums: Any = None
        if self._memory is None:
            self.matches = _always
        elif self.look is None:
            self.matches = partial(bytes(self._memory).startswith, self._memory)
        else:
            # Two memoryviews: numpy's own comparison takes ten times as long for so few.
            entries: Any = memoryview(self.look.tobytes())
            entries = entries.cast(self.look.format)
            self.matches = partial(operator.eq, self.look, entries)
            if summed:
                self._sums = _column_sums(self._memory)
        if self.tensor.is_complex():
            # The same memory has other numbers in it, once it is seen as conjugate.
            self.matches = partial(_is_seen_alike, self.tensor, self.tensor.is_conj(), self.matches)

    def renewed(self) -> TensorState:
        """The same tensor as it is now."""
        place = self.tensor.data_ptr(), self.tensor.stride(), self.tensor.numel()
        if self._memory is None or place != (self.address, self.strides, self.numel):
            return TensorState(self.tensor, summed=True)
        state = TensorState.__new__(TensorState)
        state.tensor, state.address, state._memory = self.tensor, self.address, self._memory
        state.requires_grad, state.look = self.tensor.requires_grad, self.look
        state.is_foreign, state.strides, state.numel = self.is_foreign, self.strides, self.numel
        state._note(summed=True)
        return state

    def is_unchanged(self) -> bool:
        """Whether the tensor is as it was."""
        return (
            self.requires_grad is self.tensor.requires_grad
            and self.is_untouched()
            and self.is_summed_alike()
        )

    def is_untouched(self) -> bool:
        """Whether nobody wrote into the tensor, as far as its version and some entries tell."""
        return (
            # Memory that is gone may not be looked at.
            self.address == self.tensor.data_ptr()
            and self.strides == self.tensor.stride()
            # Not by `numel()`: torch.jit.trace would record, and warn of, that question.
            and self.numel * self.tensor.element_size() == self.tensor.nbytes
            and (self.version is None or self.version == version(self.tensor))
            and self.matches()
        )

    def is_moved(self) -> bool:
        """Whether the tensor's memory has gone elsewhere as a whole, into shared memory, say."""
        return self.tensor.data_ptr() != self.address

    def is_summed_alike(self) -> bool:
        """Whether the sums are what they were, where an event says that this may not be so."""
        if self._sums is None:
            return True
        now = 2 * Events.count + _is_recording()
        if now == self._moment and not self.is_foreign:
            return True
        if self._memory is None:
            is_alike = torch.equal(self._sums, _device_sums(self.tensor))
            # Once is enough, as long as nothing else happens.
            self._sums = None if is_alike else self._sums
            return is_alike
        if not np.array_equal(self._sums, _column_sums(self._memory)):
            return False
        self._moment = now
        return True

    def mark(self) -> None:
        """Sum the tensor, where that is not done for free at other times."""
        if self._memory is None and self.tensor.numel() > 0:
            self._sums = _device_sums(self.tensor)


_NOTHING = np.empty(0, np.uint8)


def _memory(tensor: Tensor) -> Any:
    """The memory of a dense tensor on the CPU, byte by byte."""
    if not tensor.is_cpu or tensor.numel() == 0 or not is_dense(tensor):
        return _NOTHING if tensor.is_cpu and tensor.numel() == 0 else None
    if tensor.is_neg():
        return None
    if tensor.is_conj():
        tensor = tensor.conj()
    # Strides do not matter here, nor do the numbers: the memory of any dense tensor is flat.
    flat = tensor.detach().as_strided((tensor.numel(),), (1,))
    # Not by `numpy()`, after which the storage can't be resized any more.
    return np.from_dlpack(flat.view(torch.uint8))


def _always() -> bool:
    return True


def _is_seen_alike(tensor: Tensor, is_conj: bool, matches: Callable[[], bool]) -> bool:
    return tensor.is_conj() is is_conj and matches()


def _look_at(memory: Any, tensor: Tensor) -> memoryview | None:
    """Some entries of a large tensor, evenly spread."""
    if memory is None or tensor.numel() <= _WHOLE:
        return None
    # An entry of two numbers may be two words.
    word = min(tensor.element_size(), 8)
    words = tensor.element_size() // word
    periods = {words * stride for stride in tensor.stride()} | {words}
    step = _distance(words * tensor.numel(), tuple(sorted(periods - {1})), _LINE // word)
    return memoryview(memory.view(f"u{word}"))[::step]


@lru_cache
def _distance(size: int, periods: tuple[int, ...], line: int) -> int:
    """How far apart the samples of a tensor lie, so that they are spread in each dimension.

    Where rows are as long as a part of the distance, all samples would lie in a few columns, and
    nobody would see the others written.

    Args:
        size: how many words the tensor has.
        periods: the strides of its dimensions in words.
        line: how many words the processor fetches at once.
    """
    longest = size // _SAMPLES
    shortest = longest - longest // 16
    # Odd ones, for every other column is written by itself, too.
    between = 2 * max((longest - shortest) // 128, 1)
    distances = range(longest - 1 + longest % 2, shortest - 1, -between)
    # At a distance of an even number of cache lines, they would share a few places in the cache,
    # and each look would go to the memory.
    spread = [d for d in distances if d // line % 2 == 1] or [*distances]
    return min(spread, key=lambda d: sum(_widest_gap(d, size, period) for period in periods))


def _widest_gap(distance: int, size: int, period: int) -> float:
    """The largest share of a row that no sample lies in, where rows have the length ``period``."""
    places = sorted({i % period for i in range(0, size, distance)})
    after = [*places[1:], places[0] + period]
    return max(b - a for a, b in zip(places, after, strict=True)) / period


def _column_sums(memory: Any) -> Any:
    """Sums of whole numbers, which no change of one entry leaves, nor one of two unless it must."""
    words = memory[: len(memory) // 8 * 8].view(np.int64)
    rows = len(words) // _COLUMNS
    table = words[: rows * _COLUMNS].reshape(rows, _COLUMNS).sum(axis=0)
    rest = memory[rows * _COLUMNS * 8 :]
    return np.concatenate([table.view(np.uint8), rest])


def _device_sums(tensor: Tensor) -> Tensor:
    with torch.no_grad():
        flat = tensor.detach().resolve_conj().reshape(-1)
        flat = flat.view(_INTEGERS.get(tensor.element_size(), torch.int64))
        rows = flat.numel() // _COLUMNS
        table = flat[: rows * _COLUMNS].reshape(rows, _COLUMNS)
        return torch.cat([table.sum(0), flat[rows * _COLUMNS :].long()])


def is_dense(tensor: Tensor) -> bool:
    """Whether the entries of a tensor fill a stretch of memory, each in a place of its own."""
    return tensor.is_contiguous() or torch.ops.aten.is_non_overlapping_and_dense.default(tensor)


def can_be_seen(tensor: Tensor) -> bool:
    """Whether what happens to a tensor can be seen."""
    return (
        type(tensor) in (Tensor, torch.nn.Parameter)
        and tensor.layout is torch.strided
        and tensor.is_leaf
        and not tensor.is_meta
        and not tensor.is_inference()
        and not tensor.is_neg()
        and is_dense(tensor)
        # Another process may write shared memory.
        and not (tensor.device.type == "cpu" and tensor.is_shared())
        and not (tensor.is_cuda and torch.cuda.is_current_stream_capturing())
    )
