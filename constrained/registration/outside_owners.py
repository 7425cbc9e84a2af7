"""Modules outside of a model that own a tensor of it.

If only one of two tied tensors were constrained, they would come untied: the other module would be
left with the free parameter. Torch does not know which modules own a tensor, and a search among all
objects takes tens of milliseconds. So the references to the tensor are counted first. Mostly there
are no others than the model's own.

A module of the model may also hold the tensor in a plain attribute, or in a list there. Such a
reference is not updated, and what is computed with it is not constrained. There is a warning.
"""

from __future__ import annotations

import gc
import sys
import warnings
from collections.abc import Collection, Iterable, Sequence
from typing import Any, cast

from torch import nn

from constrained.parametrized.call_stack import user_stacklevel
from constrained.parametrized.module_class import base_class
from constrained.parametrized.parametrization_list import ParametrizationList
from constrained.parametrized.parametrizations import lists_of
from constrained.parametrized.tensor_locations import Location
from constrained.registration.stale_parameters import listed
from constrained.torch_internals.modules import submodules

#: How many levels of lists and dictionaries are searched. The groups of an optimizer have three.
_DEPTH = 3

_CONTAINERS = (list, tuple, set, frozenset, dict)

#: Where a module keeps what it owns.
_OWNED = ("_parameters", "_buffers", "_modules")


def check_owners(model: nn.Module, tensors: Iterable[tuple[Sequence[Location], int]]) -> None:
    """Raise, before anything has changed, if a module outside of a model owns one of its tensors.

    An owner has the tensor as a parameter or buffer; an optimizer or a list is no owner. Objects
    that `gc.freeze` has hidden are not found. There is a warning if a module of the model holds the
    tensor in a plain attribute.

    Args:
        model: the model.
        tensors: all locations of each tensor in the model, and how many more references to it the
            caller has.

    Raises:
        ValueError: names the other owner, and what to do.
    """
    held = [here for here, more in tensors if _is_held_elsewhere(here, more)]
    if not held:
        return
    if _outside(held) is not None:
        # A module that nobody uses any more may still be alive in a reference cycle.
        gc.collect()
        found = _outside(held)
        if found is not None:
            fate = "be left with its free parameter"
            raise ValueError(_described(*found, fate, "constrain"))
    _warn_of_attributes(model, {id(here[0].tensor): here[0].path for here in held})


def check_other_owners(tensors: Iterable[Sequence[Location]]) -> None:
    """Raise if a constrained tensor of a model is tied to one of a module outside of it.

    The other tensor would stay constrained when the model is released, and the two would come
    untied.

    Args:
        tensors: all locations of each tensor in the model.

    Raises:
        ValueError: names the other owner, and what to do.
    """
    shared = [here for here in tensors if _owned_elsewhere(here)]
    if shared:
        # A module that nobody uses any more may still be alive in a reference cycle.
        gc.collect()
    for here in shared:
        for owner in _modules():
            lists = owner._modules.get("parametrizations")
            if lists in _owned_elsewhere(here):
                name = next(k for k, v in lists_of(owner).items() if v is here[0].tensor)
                raise ValueError(_described(here[0], owner, name, "stay constrained", "release"))


def _owned_elsewhere(here: Sequence[Location]) -> set[Any]:
    """The `Parametrizations` of other modules than the known ones that hold a tensor's list."""
    own = {place.module._modules.get("parametrizations") for place in here}
    return set(getattr(here[0].tensor, "_owners", ())) - own


def _warn_of_attributes(model: nn.Module, paths: dict[int, str]) -> None:
    """Warn of tensors that the modules of a model hold in plain attributes as well.

    Args:
        model: the model.
        paths: the path of each tensor by its id.
    """
    for prefix, module in submodules(model):
        for name, value in vars(module).items():
            if name in _OWNED or _renews(module, value):
                continue
            found = [paths[id(item)] for item in _items(value, _DEPTH) if id(item) in paths]
            if found:
                names = listed(list(dict.fromkeys(found)))
                warnings.warn(
                    f"'{f'{prefix}.' if prefix else ''}{name}' of the {type(model).__name__} holds "
                    f"the plain tensor of {names}, which is not the constrained value from now on: "
                    f"read {names} wherever it is used.",
                    stacklevel=user_stacklevel(),
                )


def _renews(module: nn.Module, value: Any) -> bool:
    """Whether a module updates such an attribute: a recurrent layer keeps a list of its weights."""
    return isinstance(module, nn.RNNBase) and type(value) is list


def _items(value: Any, depth: int) -> list[Any]:
    """A value, and what is in it if it is a list, a tuple, a set or a dictionary."""
    found: list[Any] = [value]
    level = found
    for _ in range(depth):
        # By `type`, as below in `_owners`.
        nested: list[Any] = [item for item in level if issubclass(type(item), _CONTAINERS)]
        level = [item for x in nested for item in _contents(x)]
        found = found + level
    return found


def _contents(container: Any) -> Any:
    return container.values() if issubclass(type(container), dict) else container


def _references(box: list[Any]) -> int:
    return sys.getrefcount(box[0])


#: The count for an object that only the list refers to.
_ALONE = _references([object()])


def _is_held_elsewhere(here: Sequence[Location], more: int) -> bool:
    known = {(id(container), place.name) for place in here for container in _containers(place)}
    values = (v for place in here for v in vars(place.module).values() if _renews(place.module, v))
    lists = {id(v): v for v in values}
    listed = sum(item is here[0].tensor for found in lists.values() for item in found)
    return _references([here[0].tensor]) > _ALONE + len(known) + listed + more


def _containers(place: Location) -> list[dict[str, Any]]:
    tensors = (place.module._parameters, place.module._buffers)
    return [container for container in tensors if container.get(place.name) is place.tensor]


def _owners(tensors: Iterable[Any], known: Collection[int]) -> list[nn.Module]:
    """The modules that may own some of these tensors, except for owners that are known."""
    # The search starts at the tensors. A list of all objects would contain objects that another
    # thread is still building, such as a tuple, which cannot be finished while it is referred to.
    containers: list[Any] = [
        o for o in gc.get_referrers(*tensors) if id(o) not in known and type(o) is dict
    ]
    if not containers:
        # This saves two more searches. Mostly a list or a variable holds the tensor.
        return []
    holders = gc.get_referrers(*containers)
    states: list[Any] = [o for o in holders if type(o) is dict and "_parameters" in o]
    # By type: `isinstance` would make proxies load the objects that they stand for.
    return [o for o in (*holders, *gc.get_referrers(*states)) if issubclass(type(o), nn.Module)]


def _outside(held: Iterable[Sequence[Location]]) -> tuple[Location, nn.Module, str] | None:
    """The location of a tensor in the model, another owner, and the tensor's name there."""
    wanted = {id(here[0].tensor): here for here in held}
    known = {id(c) for here in wanted.values() for place in here for c in _containers(place)}
    for module in _owners((here[0].tensor for here in wanted.values()), known):
        for kind in ("_parameters", "_buffers"):
            container: Any = module.__dict__.get(kind)
            if id(container) not in known and type(container) is dict:
                for name, tensor in cast("dict[str, Any]", container).items():
                    if id(tensor) in wanted:
                        return wanted[id(tensor)][0], module, name
    return None


def _modules() -> list[nn.Module]:
    # A module whose __init__ has not run yet has no submodules. A scripted one has them in another
    # container.
    modules = [o for o in gc.get_objects() if issubclass(type(o), nn.Module)]
    return [m for m in modules if isinstance(m.__dict__.get("_modules"), dict)]


def _described(place: Location, owner: nn.Module, name: str, fate: str, cure: str) -> str:
    if isinstance(owner, ParametrizationList):
        return (
            f"'{place.path}' is the same tensor as an original of one that is parametrized by "
            f"{owner.described()} already: make that one plain again first, and then constrain "
            "the module that holds both."
        )
    both = [m for m in _modules() if {owner, place.module} <= set(m.modules())]
    if not both:
        return (
            f"'{place.path}' is the same tensor as '{name}' of another "
            f"{base_class(owner).__name__}, which would {fate}: put both modules into one, such as "
            f"an nn.ModuleList, and {cure} that."
        )
    root = min(both, key=lambda m: len(set(m.modules())))
    path = next(path for path, module in submodules(root) if module is owner)
    return (
        f"'{place.path}' is the same tensor as '{f'{path}.' if path else ''}{name}' of the "
        f"{base_class(root).__name__} around it, which would {fate}: {cure} that one, which holds "
        "both, and they stay tied."
    )
