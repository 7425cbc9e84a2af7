"""Modules outside of a model that own a tensor of it.

A tensor that is tied to one outside of the model that was given would come untied: there the free
parameter would go on to stand in its place. Nobody keeps a list of the owners of a tensor, and to
look for them among all objects takes tens of milliseconds. So the references to a tensor are
counted first: mostly there are none but those that are known.

A module of the model may hold a tensor by itself as well, in an attribute or in a list that is one.
Nothing can renew such a reference, and what is computed with it is not constrained: that is said.
"""

from __future__ import annotations

import gc
import sys
import warnings
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from torch import nn

from constrained.parametrized.call_stack import user_stacklevel
from constrained.parametrized.locations import Location
from constrained.parametrized.module_class import base_class
from constrained.parametrized.parametrization_list import ParametrizationList
from constrained.registration.stale_parameters import listed

#: How deep in lists and dictionaries a tensor is looked for, as in those of an optimizer's groups.
_DEPTH = 3

_CONTAINERS = (list, tuple, set, frozenset, dict)

#: Where a module keeps what it owns.
_OWNED = ("_parameters", "_buffers", "_modules")


def check_owners(model: nn.Module, tensors: Iterable[tuple[Sequence[Location], int]]) -> None:
    """Raise, before anything has changed, if a module outside of a model owns one of its tensors.

    Whoever merely holds the tensor, such as an optimizer or a list, is no owner. What `gc.freeze`
    has hidden is not found. Where a module of the model does, there is a warning.

    Args:
        model: the model.
        tensors: all places of each tensor in the model, and how many more references to it the
            caller has.

    Raises:
        ValueError: with the other owner and the cure.
    """
    held = [here for here, more in tensors if _is_held_elsewhere(here, more)]
    if not held:
        return
    if _outside(held) is not None:
        # A module that was dropped may linger in a reference cycle.
        gc.collect()
        found = _outside(held)
        if found is not None:
            fate = "be left with its free parameter"
            raise ValueError(_described(*found, fate, "constrain"))
    _warn_of_attributes(model, {id(here[0].tensor): here[0].path for here in held})


def check_other_owners(tensors: Iterable[Sequence[Location]]) -> None:
    """Raise if a module outside of a model has one of its constrained tensors as well, by a tie.

    That would stay constrained where this becomes plain, and the two would come untied.

    Args:
        tensors: all places of each tensor in the model.

    Raises:
        ValueError: with the other owner and the cure.
    """
    shared = [here for here in tensors if _owned_elsewhere(here)]
    if shared:
        # A module that was dropped may linger in a reference cycle.
        gc.collect()
    for here in shared:
        for owner in _modules():
            lists = owner._modules.get("parametrizations")
            if lists in _owned_elsewhere(here):
                name = next(k for k, v in lists.items() if v is here[0].tensor)  # type: ignore[union-attr]
                raise ValueError(_described(here[0], owner, name, "stay constrained", "release"))


def _owned_elsewhere(here: Sequence[Location]) -> set[Any]:
    """What holds the parametrizations of a tensor outside of these places."""
    own = {place.module._modules.get("parametrizations") for place in here}
    return set(getattr(here[0].tensor, "_owners", ())) - own


def _warn_of_attributes(model: nn.Module, paths: dict[int, str]) -> None:
    """Warn of tensors, by their ids, that the modules of a model hold in attributes as well."""
    for prefix, module in model.named_modules():
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
    """Whether a module renews what it holds: a recurrent layer keeps a list of its weights."""
    return isinstance(module, nn.RNNBase) and type(value) is list


def _items(value: Any, depth: int) -> list[Any]:
    """A value, and what is in it where it is a list, a tuple, a set or a dictionary."""
    found = level = [value]
    for _ in range(depth):
        # By type, as below.
        nested = [item for item in level if issubclass(type(item), _CONTAINERS)]
        level = [item for x in nested for item in (x.values() if isinstance(x, dict) else x)]
        found = found + level
    return found


def _references(box: list[Any]) -> int:
    return sys.getrefcount(box[0])


#: What is counted for an object that nobody holds but its box.
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
    """The modules that may own some of these tensors, beside those of containers that are known."""
    # From the tensors upwards, since a list of all objects would hold those that another thread is
    # about to build, such as a tuple, which it could not finish then.
    containers = [o for o in gc.get_referrers(*tensors) if type(o) is dict and id(o) not in known]
    if not containers:
        # Each search goes through all objects. Mostly a list or a variable holds the tensor.
        return []
    holders = gc.get_referrers(*containers)
    states = [o for o in holders if type(o) is dict and "_parameters" in o]
    # By type: `isinstance` would ask proxies for the class of what they stand for.
    return [o for o in (*holders, *gc.get_referrers(*states)) if issubclass(type(o), nn.Module)]


def _outside(held: Iterable[Sequence[Location]]) -> tuple[Location, nn.Module, str] | None:
    """The place of a tensor in the model, another owner, and the tensor's name there."""
    wanted = {id(here[0].tensor): here for here in held}
    known = {id(c) for here in wanted.values() for place in here for c in _containers(place)}
    for module in _owners((here[0].tensor for here in wanted.values()), known):
        for kind in ("_parameters", "_buffers"):
            container: Any = module.__dict__.get(kind)
            if type(container) is dict and id(container) not in known:
                for name, tensor in container.items():
                    if id(tensor) in wanted:
                        return wanted[id(tensor)][0], module, name
    return None


def _modules() -> list[nn.Module]:
    # A module whose __init__ has not run yet has no submodules, and one that is scripted has them
    # in a container of its own.
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
    path = next(path for path, module in root.named_modules() if module is owner)
    return (
        f"'{place.path}' is the same tensor as '{f'{path}.' if path else ''}{name}' of the "
        f"{base_class(root).__name__} around it, which would {fate}: {cure} that one, which holds "
        "both, and they stay tied."
    )
