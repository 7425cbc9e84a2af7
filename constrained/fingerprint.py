"""What a value was computed from, and whether all of that is as it was.

A stored value may be used again as long as an evaluation would give the same. That is asked of the
world at each read, and never told by a notification that could be missed:

* the tensors are the same objects, at the same version, with the same memory, contents and
  ``requires_grad``;
* the modules hold the same tensors and submodules, and their attributes are what they were;
* nobody listens: a hook, or a ``forward`` of one instance, may compute anything.

What can't be watched has no fingerprint, and its value is evaluated at each read.
"""

from __future__ import annotations

import itertools
import operator
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from constrained.torch_internals.modules import global_hooks, hooks_of
from constrained.torch_internals.tensors import version

#: Tensors of so many entries are compared entry by entry at each read.
_WHOLE = 4096
#: Of larger ones at least so many are, and the sums of all, in so many columns, after an event.
_SAMPLES, _COLUMNS = 32, 509
#: The bytes that a processor fetches at once.
_LINE = 64

#: By the size of an entry in bytes, as what numpy reads it.
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

_is_recording = torch.is_grad_enabled


_numbers = itertools.count(1)


class _Events:
    """How many things have happened that writes follow, in any thread."""

    count = 0


def expect_writes() -> None:
    """Say that something has happened after which people write into tensors.

    A backward pass and a step of an optimizer are such: hand-written steps, clipping and copies of
    master weights follow them. They go through ``tensor.data`` as often as not, which no version
    counter sees.
    """
    _Events.count = next(_numbers)


def happened() -> int:
    """How many such events there were."""
    return _Events.count


def moment() -> int:
    """A number that is another one after each event, and where gradients are recorded or not."""
    # Writes are made where gradients are off, and what reads next records them, or the reverse.
    return 2 * _Events.count + _is_recording()


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
        now = 2 * _Events.count + _is_recording()
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


# ------------------------------------------------------------------------------------- modules

#: What a module may hold without anybody being able to change it in place.
_FIXED = (
    *(type(None), bool, int, float, complex, str, bytes, range, slice, type, Enum, np.generic),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format),
    *(types.FunctionType, types.BuiltinFunctionType, types.MethodType, partial),
)
_CONTAINERS = ("_parameters", "_buffers", "_modules")
#: What `nn.Module` keeps for itself, and what says nothing about a value.
_PRIVATE = frozenset(vars(nn.Module())) | {"_revision", "_map_revision", "exempt", "keeps"}


#: Packages in whose classes nothing but `forward` is set from outside.
_SETTLED = frozenset({"constrained", "constraints", "torch"})


class UnwatchableError(Exception):
    """A module holds something of which nobody can tell whether it is what it was."""


class Structure:
    """Modules as they are, but for the numbers in their tensors.

    Args:
        modules: the list of a tensor's parametrizations, and all modules in it. The first of them
            holds on to the value, which must not hold on to it: its dictionary is given whenever
            it is looked at again.
        lenient: whether an attribute that may be changed in place is taken for what it was as long
            as it is the same object, and modules other than the first may have hooks.

    Attributes:
        tensors: all tensors of the modules.

    Raises:
        UnwatchableError: if what happens to them can't be seen, or if somebody listens.
    """

    __slots__ = (
        *("_classes", "_counters", "_inner", "_is_alike", "_lengths", "_lists", "_own", "_silent"),
        *("_maps", "_modes", "_places", "_slots", "tensors"),
    )

    def __init__(self, modules: Sequence[nn.Module], *, lenient: bool = False) -> None:
        self._silent: list[Any] = [] if lenient else global_hooks()
        self._lengths: list[tuple[Any, int]] = []
        self._slots: list[tuple[Callable[[str], Any], str, Any]] = []
        self._counters: list[tuple[dict[str, Any], int]] = []
        self._lists: list[tuple[Any, Any]] = []
        self._maps: list[tuple[dict[str, Any], int]] = []
        self._modes: list[tuple[Callable[[str], Any], str, Any]] = []
        # A replica of DataParallel shares all but these.
        self._own = modules[0]._parameters
        tensors: dict[int, Tensor] = {}
        classes: dict[type, None] = {}
        for i, module in enumerate(modules):
            here = vars(module)
            if i > 0:
                classes.update(dict.fromkeys(_deciding(type(module))))
            if i == 0 or not lenient:
                self._silent += hooks_of(module)
                if "forward" in here:
                    raise UnwatchableError
            for name in _CONTAINERS:
                self._watch_container(here[name], tensors)
            if i == 0:
                self._inner = len(self._slots)
            else:
                self._watch_attributes(here, tensors, lenient)
        self._classes: list[tuple[Mapping[str, Any], int]] = []
        for cls in classes:
            self._watch_class(cls)
        if any(self._silent):
            raise UnwatchableError
        self.tensors = list(tensors.values())
        if not all(map(can_be_seen, self.tensors)):
            raise UnwatchableError
        # Memory of another kind, shared or only partly filled, is in another place.
        self._places = [
            (t, t.requires_grad, t.data_ptr(), t.stride(), t.numel()) for t in self.tensors
        ]
        self._is_alike = _compiled(self, ())

    def _watch_container(self, found: dict[str, Any], tensors: dict[int, Tensor]) -> None:
        if not found:
            self._silent.append(found)
            return
        self._lengths.append((found, len(found)))
        # In one go, here and below: another thread may be about to set one.
        for name, value in list(found.items()):
            self._slots.append((found.get, name, value))
            if isinstance(value, Tensor):
                tensors[id(value)] = value

    def _watch_class(self, cls: type) -> None:
        """See what is set on a class after its objects have been made, as notebooks do."""
        here = vars(cls)
        if _is_settled(cls):
            self._slots.append((here.get, "forward", here.get("forward")))
            return
        self._lengths.append((here, len(here)))
        names = _set_on(here)
        self._classes.append((here, len(names)))
        self._slots += [(here.get, name, here[name]) for name in names]

    def _watch_attributes(
        self, here: dict[str, Any], tensors: dict[int, Tensor], lenient: bool
    ) -> None:
        is_counted = "_revision" in here
        if is_counted:
            # A Constraint counts every attribute that is set, `training` among them.
            self._counters.append((here, here["_revision"]))
            self._maps.append((here, here["_map_revision"]))
        else:
            self._lengths.append((here, len(here)))
            self._modes.append((here.get, "training", here["training"]))
        for name, value in list(here.items()):
            if name in _PRIVATE or (
                is_counted and name[0] == "_" and not isinstance(value, Tensor)
            ):
                continue
            if not is_counted or isinstance(value, Tensor):
                self._slots.append((here.get, name, value))
            if isinstance(value, Tensor):
                tensors[id(value)] = value
            elif not lenient and not _is_fixed(value):
                self._lists.append((value, _copied(value)))

    def holds(self, first: Mapping[str, Any]) -> bool:
        """Whether nothing but the numbers in the tensors has changed.

        Args:
            first: the dictionary of the first module.
        """
        return self._is_alike(first) and all(
            tensor.requires_grad is trained
            and tensor.data_ptr() == address
            and tensor.stride() == strides
            and tensor.numel() == numel
            for tensor, trained, address, strides, numel in self._places
        )

    def maps_alike(self) -> bool:
        """Whether the map is what it was: all but the originals, and who listens."""
        return (
            all(here["_map_revision"] == revision for here, revision in self._maps)
            and all(len(_set_on(here)) == count for here, count in self._classes)
            and all(get(name) is found for get, name, found in self._slots[self._inner :])
            and all(value == contents for value, contents in self._lists)
        )


class Fingerprint:
    """All that a value was computed from.

    Args:
        structure: of the modules.
        states: what some of the tensors were, by the time that counts.

    Attributes:
        states: what all of them were.
        holds: whether an evaluation would give the same value now, given the dictionary of the
            first module.
    """

    __slots__ = ("holds", "states", "structure")

    def __init__(self, structure: Structure, states: Iterable[TensorState] = ()) -> None:
        known = {id(state.tensor): state for state in states}
        self.structure = structure
        self.states = [known.get(id(t)) or TensorState(t, summed=True) for t in structure.tensors]
        self.holds = _compiled(structure, self.states)

    def can_be_differentiated(self) -> bool:
        """Whether a gradient that is computed now is one of the value that was computed then."""
        return self.structure.maps_alike() and all(
            state.version is None or state.version == version(state.tensor) for state in self.states
        )

    def renewed(self) -> Fingerprint:
        """The same with the numbers that are in the tensors now."""
        return Fingerprint(self.structure, [state.renewed() for state in self.states])


def _compiled(
    structure: Structure, states: Sequence[TensorState]
) -> Callable[[Mapping[str, Any]], bool]:
    """A function that compares everything: each read of a value asks it."""
    own, silent, counters = structure._own, tuple(structure._silent), tuple(structure._counters)
    slots = (*structure._slots, *structure._modes)
    lengths, lists = tuple(structure._lengths), structure._lists
    tensors = tuple(
        (
            *(s.tensor, s.address, s.strides, s.numel, s.requires_grad, s.version, s.matches),
            None if s._memory is not None and s.look is None else s,
        )
        for s in states
    )

    def holds(first: Mapping[str, Any]) -> bool:
        if first["_parameters"] is not own or any(silent) or "forward" in first:
            return False
        for here, revision in counters:
            if here["_revision"] != revision:
                return False
        for get, name, found in slots:
            if get(name) is not found:
                return False
        for container, length in lengths:
            if len(container) != length:
                return False
        for tensor, address, strides, numel, trained, written, matches, summed in tensors:
            if (
                tensor.data_ptr() != address
                or tensor.stride() != strides
                or tensor.numel() != numel
                or tensor.requires_grad is not trained
                or version(tensor) != written
                or not matches()
                or not (summed is None or summed.is_summed_alike())
            ):
                return False
        for value, contents in lists:
            if value != contents:
                return False
        return True

    return holds


def _is_settled(cls: type) -> bool:
    return cls.__module__.partition(".")[0] in _SETTLED


def _set_on(members: Mapping[str, Any]) -> list[str]:
    """The names of what somebody set on a class: the interpreter adds others when it likes."""
    return [name for name in list(members) if not name.startswith("__")]


def _deciding(cls: type) -> Iterator[type]:
    """The classes that say what an object of a class computes, in the order of resolution.

    The map of a user's class may call that of an ancestor; one of the catalogue calls none.
    """
    is_defined = False
    for kind in cls.__mro__:
        is_settled = _is_settled(kind)
        if kind is not object and not (is_defined and is_settled):
            yield kind
        is_defined = is_defined or (is_settled and "forward" in vars(kind))


def _copied(value: Any) -> Any:
    """A container of plain data, equal to this one and apart from it.

    Raises:
        UnwatchableError: if it holds anything else: a tensor, which is not compared so, or an
            object that may be changed in place.
    """
    if type(value) in (tuple, list, set, frozenset):
        return type(value)(map(_copied, value))
    if type(value) is dict:
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, _FIXED):
        return value
    raise UnwatchableError


def _is_fixed(value: Any) -> bool:
    """Whether nobody can change a value in place."""
    return isinstance(value, _FIXED) or (
        isinstance(value, tuple) and all(isinstance(item, _FIXED) for item in value)
    )


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
