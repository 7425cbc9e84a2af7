"""Slices, copies and unions of a ``ParameterList`` or ``ParameterDict`` with parametrized tensors.

Torch's containers make a new ``Parameter`` of each value that they are given. It would get the
gradient instead of the originals. Here the new container shares the parametrizations of the old
one, as it would share its parameters. This works for methods of containers with parametrized
tensors. ``nn.ParameterList(values)``, and ``extend`` of a plain list, copy the values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import nn

from constrained.parametrized.module_class import contribute
from constrained.parametrized.override import overridable_lists, overriding
from constrained.parametrized.parametrizations import Parametrizations, inherited, lists_of
from constrained.parametrized.unsupported import deletion_error

#: Stands for an entry until its parametrizations are installed.
_PLACEHOLDER = ()


@contribute
def container_methods(base: type, names: tuple[str, ...]) -> dict[str, Callable[..., Any]]:
    """Methods of a class derived from ``base``, which replace those of torch's containers."""
    del names
    for kind, methods in _METHODS.items():
        if issubclass(base, kind):
            # A method that a derived class has overridden is left alone.
            return {n: m for n, m in methods.items() if getattr(base, n) is getattr(kind, n)}
    return {}


# ------------------------------------------------------------------------------------ lists


def _part(self: Any, idx: Any) -> Any:
    if not isinstance(idx, slice):
        return inherited(self).__getitem__(idx)
    here = range(len(self))[idx]
    if torch.compiler.is_compiling():
        # Not every version of torch can compile the construction of a module.
        return [self[i] for i in here]
    new = self.__class__()
    for i in here:
        _append(new, self, i)
    return _with_its_class(new)


def _extend(self: Any, values: Iterable[Any]) -> Any:
    if not isinstance(values, nn.ParameterList):
        return inherited(self).extend(values)
    for i in range(len(values)):
        _append(self, values, i)
    return _with_its_class(self)


def _append(new: nn.ParameterList, old: nn.ParameterList, i: int) -> None:
    found = _parametrized(old, str(i))
    new.append(old[i] if found is None else _PLACEHOLDER)
    if found is not None:
        _share(new, str(len(new) - 1), found)


# ----------------------------------------------------------------------------- dictionaries


def _copy(self: Any) -> nn.ParameterDict:
    return _union(self, nn.ParameterDict())


def _or(self: Any, other: Any) -> nn.ParameterDict:
    return _union(self, other)


def _ror(self: Any, other: Any) -> Any:
    if not isinstance(other, nn.ParameterDict):
        return inherited(self).__ror__(other)
    return _union(other, self)


def _union(first: Any, second: Any) -> nn.ParameterDict:
    """A new dictionary with the entries of both; those of the second take precedence."""
    new = nn.ParameterDict()
    both = [x if isinstance(x, nn.ParameterDict) else nn.ParameterDict(x) for x in (first, second)]
    for key in {**dict.fromkeys(both[0]), **dict.fromkeys(both[1])}:
        _add(new, key, both[1] if key in both[1] else both[0])
    return _with_its_class(new)


def _update(self: Any, parameters: Any) -> None:
    if not isinstance(parameters, nn.ParameterDict):
        inherited(self).update(parameters)
        return
    for key in parameters:
        if key in self:
            # The value is assigned; the entry keeps its own parametrizations.
            self[key] = parameters[key]
        else:
            _add(self, key, parameters)
    _with_its_class(self)


def _add(new: nn.ParameterDict, key: str, old: nn.ParameterDict) -> None:
    found = _parametrized(old, key)
    new[key] = old[key] if found is None else _PLACEHOLDER
    if found is not None:
        _share(new, key, found)


def _delete(self: Any, key: str) -> None:
    if key in lists_of(self):
        raise deletion_error(self, key)
    inherited(self).__delitem__(key)


def _clear(self: Any) -> None:
    for key in lists_of(self):
        raise deletion_error(self, key)
    inherited(self).clear()


# ------------------------------------------------------------------------------------------


def _parametrized(container: Any, name: str) -> nn.Module | None:
    """What computes an entry, if it is parametrized and nothing overrides it."""
    return overridable_lists(container).get(name) if overriding(container, name) is None else None


def _share(new: Any, name: str, parametrizations: nn.Module) -> None:
    """Give an entry the parametrizations of another one."""
    delattr(new, name)
    if "parametrizations" not in new._modules:
        new.parametrizations = Parametrizations(new)
    new.parametrizations[name] = parametrizations


def _with_its_class(new: Any) -> Any:
    """Give a container the class for its parametrized entries, and record the order of entries."""
    from constrained.parametrized.module_class import set_class

    found = lists_of(new)
    if found:
        names = map(str, range(len(new))) if isinstance(new, nn.ParameterList) else new.keys()
        kept: Any = new._modules["parametrizations"]
        kept._tensor_order = tuple(dict.fromkeys((*kept.tensor_order(), *names)))
    cls = cast("Any", type(new))
    # A slice of a list can have the class of the list.
    if not found or not found.keys() <= set(getattr(cls, "_names", ())):
        set_class(new, getattr(cls, "_base_class", cls))
    return new


_METHODS: dict[type, dict[str, Callable[..., Any]]] = {
    nn.ParameterList: {"__getitem__": _part, "extend": _extend},
    nn.ParameterDict: {
        **{"copy": _copy, "update": _update, "clear": _clear, "__delitem__": _delete},
        **{"__or__": _or, "__ror__": _ror},
    },
}
