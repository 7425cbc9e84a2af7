"""Whether all that a stored value was computed from is as it was.

A stored value may be reused as long as an evaluation would give the same. Each read compares, so
that no notification can be missed:

* the tensors are the same objects, with the same memory, contents, version and ``requires_grad``
  (see `constrained.evaluation.tensor_state`);
* the modules hold the same tensors and submodules, and their attributes are what they were;
* no module has hooks, or a ``forward`` that was set on the object: these may compute anything.

What can't be compared has no fingerprint, and its value is evaluated at each read. What surrounds a
read, such as inference mode, is compared by `constrained.evaluation.stored_value`.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from functools import partial
from typing import Any, NamedTuple, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn

from constrained.evaluation.tensor_state import TensorState, changes_are_noticed
from constrained.torch_internals.modules import global_hooks, hooks_of

#: What a module may hold without anybody being able to change it in place.
_FIXED = (
    *(type(None), bool, int, float, complex, str, bytes, range, slice, type, Enum, np.generic),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format),
    *(types.FunctionType, types.BuiltinFunctionType, types.MethodType, partial),
)

_CONTAINERS = ("_parameters", "_buffers", "_modules")

#: What `nn.Module` keeps for itself, and attributes that do not influence the value.
_PRIVATE = frozenset(vars(nn.Module())) | {
    *("_revision", "_map_revision", "expected_failures", "preserves")
}

#: Packages in whose classes nothing but `forward` is set from outside.
_CLOSED_PACKAGES = frozenset({"constrained", "constraints", "torch"})


class UnwatchableError(Exception):
    """A module holds something that may change unnoticed."""


class Facts(NamedTuple):
    """What `Fingerprint.holds` compares of modules.

    Attributes:
        own: the dictionary that must still hold the parameters of the first module.
        empty: dictionaries of hooks, parameters and the like that must still be empty.
        slots: ``get`` of a dictionary, a key, and the object that it must still return.
        lengths: dictionaries, and how many entries each must still have.
        contents: containers of plain data, and the copies that they must still equal.
    """

    own: object
    empty: Sequence[Any]
    slots: Sequence[tuple[Callable[[str], Any], str, Any]]
    lengths: Sequence[tuple[Any, int]]
    contents: Sequence[tuple[Any, Any]]


#: Passed to `Fingerprint.holds` for the first module's dictionary, if `Facts.own` is None.
_NO_MODULE: Mapping[str, Any] = {"_parameters": None}


class Fingerprint:
    """All that a value was computed from, and whether it is still the same.

    Args:
        modules: the modules.
        facts: what is compared of them.
        states: what is compared of their tensors.
    """

    __slots__ = ("_facts", "_modules", "states")

    def __init__(self, modules: Modules, facts: Facts, states: Sequence[TensorState]) -> None:
        self._modules, self.states = modules, states
        # Python takes a plain tuple apart faster than a named one.
        self._facts = (facts.own, facts.empty, facts.slots, facts.lengths, facts.contents)

    @classmethod
    def of(cls, modules: Sequence[nn.Module], *, lenient: bool = False) -> Fingerprint:
        """The present state of modules. `renewed` adds the numbers in their tensors.

        Args:
            modules: the list of a tensor's parametrizations, and all modules in it. The list holds
                the stored value, which holds the fingerprint. So the fingerprint does not hold the
                list, which would make a cycle: `holds` is given its dictionary instead.
            lenient: whether to accept attributes that may be changed in place, and hooks on modules
                other than the first. Such an attribute counts as unchanged as long as it is the
                same object.

        Raises:
            UnwatchableError: if some change could not be noticed, or if there are hooks.
        """
        found = Modules(modules, lenient)
        if any(found.everything.empty) or not all(map(changes_are_noticed, found.tensors)):
            raise UnwatchableError
        states = [TensorState(tensor, numbers=False) for tensor in found.tensors]
        return cls(found, found.everything, states)

    def renewed(self, known: Iterable[TensorState] = ()) -> Fingerprint:
        """The same modules, with the numbers that are in their tensors now.

        Args:
            known: states of some of the tensors, taken before the evaluation, to be used instead.
        """
        before = {id(state.tensor): state for state in known}
        states = [before.get(id(state.tensor)) or state.renewed() for state in self.states]
        return Fingerprint(self._modules, self._modules.everything, states)

    def holds(self, first: Mapping[str, Any], numbers: bool = True) -> bool:
        """Whether an evaluation would give the same value now. Each read of a value asks this.

        Args:
            first: the dictionary of the first module. In a replica of DataParallel it has another
                dictionary ``_parameters``, and shares all else.
            numbers: whether to compare the numbers in the tensors too.
        """
        own, empty, slots, lengths, contents = self._facts
        if first["_parameters"] is not own or "forward" in first or any(empty):
            return False
        for get, name, found in slots:
            if get(name) is not found:
                return False
        for container, length in lengths:
            if len(container) != length:
                return False
        for state in self.states:
            if not state.is_in_place() or (numbers and not state.has_same_numbers()):
                return False
        for value, copy in contents:
            if value != copy:
                return False
        return True

    def can_be_differentiated(self) -> bool:
        """Whether a backward pass of the stored value would give the right gradient now.

        The map must be the same, and no tensor may have been written, as far as version counters
        tell. Hooks, and originals that have been replaced, do not matter.
        """
        modules = self._modules
        return (
            Fingerprint(modules, modules.map, ()).holds(_NO_MODULE)
            and all(len(_set_on(here)) == count for here, count in modules.classes)
            and not any(state.is_counted_as_written() for state in self.states)
        )


class Modules:
    """All that is compared of modules but the numbers in their tensors.

    Args:
        modules, lenient: see `Fingerprint.of`.

    Attributes:
        everything: what is compared before a value is reused.
        map: the part of that on which the map from the originals to the value depends.
        classes: the dictionaries of users' classes, and how many names are set on each.
        tensors: all tensors of the modules.
    """

    __slots__ = (
        *("_contents", "_empty", "_lengths", "_slots", "_tensors"),
        *("classes", "everything", "map", "tensors"),
    )

    def __init__(self, modules: Sequence[nn.Module], lenient: bool) -> None:
        self._empty: list[Any] = [] if lenient else global_hooks()
        self._slots: list[tuple[Callable[[str], Any], str, Any]] = []
        self._lengths: list[tuple[Any, int]] = []
        self._contents: list[tuple[Any, Any]] = []
        self._tensors: dict[int, Tensor] = {}
        self.classes: list[tuple[Mapping[str, Any], int]] = []
        first, *others = map(vars, modules)
        # A Constraint counts how often an attribute is set on it, `training` included. The counts
        # are noted before the attributes: if another thread sets one in between, they will differ.
        counted = [here for here in others if _counts(here)]
        modes = [(here.get, "training", here["training"]) for here in others if not _counts(here)]
        modes += [(here.get, "_revision", here["_revision"]) for here in counted]
        maps = [(here.get, "_map_revision", here["_map_revision"]) for here in counted]
        for name in _CONTAINERS:
            self._watch_container(first[name])
        of_first = len(self._slots)
        for module in modules if not lenient else modules[:1]:
            self._empty += hooks_of(module)
            if "forward" in vars(module):
                raise UnwatchableError
        for here in others:
            for name in _CONTAINERS:
                self._watch_container(here[name])
            self._watch_attributes(here, lenient)
        for cls in dict.fromkeys(
            c for module in modules[1:] for c in _relevant_classes(type(module))
        ):
            self._watch_class(cls)
        self.tensors = list(self._tensors.values())
        self.everything = Facts(
            *(first["_parameters"], self._empty, [*modes, *self._slots]),
            *(self._lengths, self._contents),
        )
        self.map = Facts(None, (), [*maps, *self._slots[of_first:]], (), self._contents)

    def _watch_container(self, found: dict[str, Any]) -> None:
        if not found:
            self._empty.append(found)
            return
        self._lengths.append((found, len(found)))
        # `list` copies the items, here and below: another thread may add one meanwhile.
        for name, value in list(found.items()):
            self._slots.append((found.get, name, value))
            if isinstance(value, Tensor):
                self._tensors[id(value)] = value

    def _watch_attributes(self, here: dict[str, Any], lenient: bool) -> None:
        is_counted = _counts(here)
        if not is_counted:
            self._lengths.append((here, len(here)))
        for name, value in list(here.items()):
            is_tensor = isinstance(value, Tensor)
            if name in _PRIVATE or (is_counted and name[0] == "_" and not is_tensor):
                continue
            if is_tensor:
                self._tensors[id(value)] = value
            elif not lenient and not _is_fixed(value):
                self._contents.append((value, _copied(value)))
            if is_tensor or not is_counted:
                self._slots.append((here.get, name, value))

    def _watch_class(self, cls: type) -> None:
        """Notice what is set on a class later, as in notebooks."""
        here = vars(cls)
        if _is_closed(cls):
            self._slots.append((here.get, "forward", here.get("forward")))
            return
        self._lengths.append((here, len(here)))
        names = _set_on(here)
        self.classes.append((here, len(names)))
        self._slots += [(here.get, name, here[name]) for name in names]


def _counts(attributes: Mapping[str, Any]) -> bool:
    """Whether these are the attributes of a Constraint, which counts how often they are set."""
    return "_revision" in attributes


def _is_closed(cls: type) -> bool:
    return cls.__module__.partition(".")[0] in _CLOSED_PACKAGES


def _set_on(members: Mapping[str, Any]) -> list[str]:
    """The names that somebody set on a class. The interpreter may add names with ``__`` later."""
    return [name for name in list(members) if not name.startswith("__")]


def _relevant_classes(cls: type) -> Iterator[type]:
    """The classes on which it depends what an object computes, in the order of resolution.

    A user's `forward` may call that of an ancestor, so the ancestors are included. The `forward` of
    a class of the catalogue calls no other, so the packages' classes behind it are left out.
    """
    is_defined = False
    for kind in cls.__mro__:
        is_closed = _is_closed(kind)
        if kind is not object and not (is_defined and is_closed):
            yield kind
        is_defined = is_defined or (is_closed and "forward" in vars(kind))


def _copied(value: Any) -> Any:
    """A copy of a container of plain data, and of the containers in it.

    Raises:
        UnwatchableError: if it holds anything else: a tensor, or another object that may be changed
            in place.
    """
    if type(value) in (tuple, list, set, frozenset):
        return type(value)(map(_copied, value))
    if _is_dict(value):
        return {key: _copied(item) for key, item in value.items()}
    if _is_fixed(value):
        return value
    raise UnwatchableError


def _is_dict(value: Any) -> TypeGuard[dict[Any, Any]]:
    return type(value) is dict


def _is_fixed(value: Any) -> bool:
    """Whether nobody can change a value in place."""
    items: Any = value
    return isinstance(value, _FIXED) or (
        isinstance(items, tuple) and all(isinstance(item, _FIXED) for item in value)
    )
