"""Whether a tensor still holds the numbers that it held when a value was computed from it.

A version counter misses what is written through ``tensor.data``, or by numpy. So the memory is
compared too. On the CPU a small tensor is compared whole at each read. Of a large one some entries
are compared at each read, and column sums of all of them at the first read after an event that
writes follow (see `constrained.evaluation.events`). On other devices, where a comparison waits for
the device, the sums are compared once after each backward pass, with those at its time.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from constrained.evaluation.events import moment
from constrained.torch_internals.tensors import version

#: Tensors of at most so many entries are compared entry by entry at each read.
_WHOLE = 4096

#: Of larger ones at least so many entries are compared at each read, and after an event the sums of
#: all entries, in so many columns.
_SAMPLES, _COLUMNS = 32, 509

#: The bytes that a processor fetches at once.
_LINE = 64

#: The dtype in which entries of so many bytes are summed.
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class TensorState:
    """What a tensor was when a value was computed from it, or when it was returned to a reader.

    Args:
        tensor: any.
        summed: whether to sum a large tensor, so that all of it can be compared later on.
        numbers: whether to note what the tensor holds, and not only where its memory is.
    """

    __slots__ = (
        *("_is_foreign", "_matches", "_memory", "_moment", "_samples", "_sums", "address"),
        *("dtype", "nbytes", "requires_grad", "strides", "tensor", "version"),
    )

    def __init__(self, tensor: Tensor, *, summed: bool = False, numbers: bool = True) -> None:
        self.tensor = tensor
        self.requires_grad = tensor.requires_grad
        self.address = tensor.data_ptr()
        # Not `numel()`: torch.jit.trace would record, and warn of, that question.
        self.strides, self.nbytes, self.dtype = tensor.stride(), tensor.nbytes, tensor.dtype
        self._memory = _memory(tensor)
        self._samples = _samples(self._memory, tensor)
        self._is_foreign = not tensor.untyped_storage().resizable()
        if numbers:
            self._note(summed)

    def _note(self, summed: bool) -> None:
        # Inference tensors keep no count, and serve inference mode only.
        self.version = None if self.tensor.is_inference() else version(self.tensor)
        # Another library that owns the memory, such as numpy, may write at any time.
        self._moment = None if self._is_foreign else moment()
        self._sums: Any = None
        if self._memory is None:
            self._matches: Callable[[], bool] = _always
        elif self._samples is None:
            self._matches = partial(bytes(self._memory).startswith, self._memory)
        else:
            # Two memoryviews: numpy's own comparison takes ten times as long for so few.
            entries: Any = memoryview(self._samples.tobytes())
            self._matches = partial(operator.eq, self._samples, entries.cast(self._samples.format))
            if summed:
                self._sums = _column_sums(self._memory)
        if self.tensor.is_complex():
            # The same memory has other numbers in it, once it is read as conjugate.
            matches = self._matches
            self._matches = partial(_matches_as_conj, self.tensor, self.tensor.is_conj(), matches)

    def renewed(self) -> TensorState:
        """The state of the same tensor now, with its sums."""
        if not self.is_in_place():
            return TensorState(self.tensor, summed=True)
        state = TensorState.__new__(TensorState)
        state.tensor, state.requires_grad = self.tensor, self.requires_grad
        state.address, state.strides, state.nbytes = self.address, self.strides, self.nbytes
        state.dtype = self.dtype
        state._memory, state._samples = self._memory, self._samples
        state._is_foreign = self._is_foreign
        state._note(summed=True)
        return state

    def is_unchanged(self) -> bool:
        """Whether the tensor is as it was."""
        # Memory that is gone may not be looked at.
        return self.is_in_place() and self.has_same_numbers()

    def is_in_place(self) -> bool:
        """Whether the tensor has the memory that it had, laid out alike, and is trained or not."""
        tensor = self.tensor
        return (
            tensor.data_ptr() == self.address
            and tensor.stride() == self.strides
            and tensor.nbytes == self.nbytes
            and tensor.dtype is self.dtype
            and tensor.requires_grad is self.requires_grad
        )

    def has_same_numbers(self) -> bool:
        """Whether nobody wrote into the tensor's memory, which must be where it was."""
        # Python calls a local name faster than an attribute.
        written, matches = self.version, self._matches
        return (
            (written is None or written == version(self.tensor))
            and matches()
            and (self._sums is None or self._moment == moment() or self._sums_match())
        )

    def is_counted_as_written(self) -> bool:
        """Whether autograd has counted a write, as it asks of the tensors that it saves."""
        return self.version is not None and self.version != version(self.tensor)

    def is_moved(self) -> bool:
        """Whether the tensor has other memory now, for example shared memory."""
        return self.tensor.data_ptr() != self.address

    def _sums_match(self) -> bool:
        """Whether the sums are what they were. Asked again after the next event only."""
        if self._memory is None:
            if not torch.equal(self._sums, _device_sums(self.tensor)):
                return False
            # Not compared again until `sum_on_device` has been called again.
            self._sums = None
        elif not np.array_equal(self._sums, _column_sums(self._memory)):
            return False
        if not self._is_foreign:
            self._moment = moment()
        return True

    def sum_on_device(self) -> None:
        """Sum a tensor on another device. It takes time there, so it is done after events only."""
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


def _matches_as_conj(tensor: Tensor, is_conj: bool, matches: Callable[[], bool]) -> bool:
    return tensor.is_conj() is is_conj and matches()


def _samples(memory: Any, tensor: Tensor) -> memoryview | None:
    """Some entries of a large tensor, evenly spread; None for a small one."""
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

    Where rows are as long as a part of the distance, all samples would lie in a few columns, and a
    write of the others would not be noticed.

    Args:
        size: how many words the tensor has.
        periods: the strides of its dimensions in words.
        line: how many words the processor fetches at once.
    """
    longest = size // _SAMPLES
    shortest = longest - longest // 16
    # Odd distances only: sometimes every other column is written.
    between = 2 * max((longest - shortest) // 128, 1)
    distances = range(longest - 1 + longest % 2, shortest - 1, -between)
    # At a distance of an even number of cache lines, the samples would share a few places in the
    # cache, and each comparison would go to the memory.
    spread = [d for d in distances if d // line % 2 == 1] or [*distances]
    return min(spread, key=lambda d: sum(_widest_gap(d, size, period) for period in periods))


def _widest_gap(distance: int, size: int, period: int) -> float:
    """The largest share of a row that no sample lies in, where rows have the length ``period``."""
    places = sorted({i % period for i in range(0, size, distance)})
    after = [*places[1:], places[0] + period]
    return max(b - a for a, b in zip(places, after, strict=True)) / period


def _column_sums(memory: Any) -> Any:
    """Sums of the memory, read as whole numbers: a change of any one entry changes them.

    So does a change of two, unless they lie in one column and change by opposite amounts.
    """
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


def changes_are_noticed(tensor: Tensor) -> bool:
    """Whether every change of a tensor can be noticed."""
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
