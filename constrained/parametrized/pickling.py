"""How a module with parametrized tensors is pickled and copied.

Its class is made at runtime, and pickle does not find it by its name. So a module is pickled as its
base class, the names of its parametrized tensors, and its state. Pickles contain the names of the
functions here that rebuild a module: they must not change.
"""

from __future__ import annotations

import copyreg
from collections.abc import Callable
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from constrained.parametrized.module_class import class_names, contribute, parametrized_class
from constrained.parametrized.parametrizations import inherited


@contribute
def pickling_members(base: type, names: tuple[str, ...]) -> dict[str, Any]:
    """The method that pickles a module of a class with parametrized tensors."""
    del base, names
    return {"__reduce_ex__": _reduce_ex}


def _reduce_ex(self: Any, protocol: int) -> tuple[Any, ...]:
    cls = cast("Any", type(self))
    state: Any = self.__getstate__()
    slots: dict[str, Any] = {}
    if cls.__getstate__ is nn.Module.__getstate__:
        # nn.Module neither saves slots nor restores them.
        names = cast("list[str]", copyreg._slotnames(cls))  # type: ignore[attr-defined]
        slots = {name: getattr(self, name) for name in names if hasattr(self, name)}
    if type(state) is dict:
        attributes = cast("dict[str, Any]", state)
        state = {k: _without_graph(v) for k, v in attributes.items() if k != "_overrides"}
    if cls is not cls._parametrized:
        # A class that another library has derived: pickle finds it as any class.
        return *inherited(self).__reduce_ex__(protocol)[:2], state
    base = cls._base_class
    if base.__reduce__ is not object.__reduce__:
        # The base class defines how it is rebuilt, because pickle does not find it by its name.
        made, arguments, *_ = base.__reduce__(self)
        return _rebuild_as_made, (made, arguments, class_names(self), slots), state
    return _rebuild, (base, class_names(self), slots), state


def _rebuild_as_made(
    made: Callable[..., nn.Module],
    arguments: tuple[Any, ...],
    names: tuple[str, ...],
    slots: dict[str, Any],
) -> nn.Module:
    return _rebuild(type(made(*arguments)), names, slots)


def _rebuild(base: type, names: tuple[str, ...], slots: dict[str, Any]) -> nn.Module:
    # A lazy module has a class that is made for no names while requests wait for its tensors.
    is_made = names or issubclass(base, LazyModuleMixin)
    cls: Any = parametrized_class(base, names) if is_made else base
    module = cls.__new__(cls)
    for slot, value in slots.items():
        object.__setattr__(module, slot, value)
    return module


def _without_graph(value: Any) -> Any:
    """A list with its tensors detached from their graphs; anything else as it is.

    A recurrent layer keeps a list of its weights, which are values with a graph. Such tensors
    cannot be copied. The layer replaces the list when its weights are other tensors.
    """
    if type(value) is not list:
        return value
    items = cast("list[Any]", value)
    return [
        item.detach() if isinstance(item, Tensor) and item.grad_fn is not None else item
        for item in items
    ]
