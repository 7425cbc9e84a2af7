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

import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from constrained.evaluation.tensor_state import TensorState, can_be_seen
from constrained.torch_internals.modules import global_hooks, hooks_of
from constrained.torch_internals.tensors import version

# ------------------------------------------------------------------------------------- modules

#: What a module may hold without anybody being able to change it in place.
_FIXED = (
    *(type(None), bool, int, float, complex, str, bytes, range, slice, type, Enum, np.generic),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format),
    *(types.FunctionType, types.BuiltinFunctionType, types.MethodType, partial),
)

_CONTAINERS = ("_parameters", "_buffers", "_modules")

#: What `nn.Module` keeps for itself, and what says nothing about a value.
_PRIVATE = frozenset(vars(nn.Module())) | {
    "_revision",
    "_map_revision",
    "expected_failures",
    "preserves",
}


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
