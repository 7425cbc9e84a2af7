"""How a module with parametrized tensors is pickled and copied."""

from __future__ import annotations

import copyreg
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from constrained.parametrized.module_class import class_names, contribute, parametrized_class


@contribute
def pickling_members(base: type, names: tuple[str, ...]) -> dict[str, Any]:
    """How a module of such a class is pickled: as its base class, the names, and its state."""
    del base, names
    return {"__reduce_ex__": _reduce_ex}


def _reduce_ex(self: Any, protocol: int) -> tuple[Any, ...]:
    cls: Any = type(self)
    state: Any = self.__getstate__()
    slots: dict[str, Any] = {}
    if cls.__getstate__ is nn.Module.__getstate__:
        # nn.Module leaves slots out, and cannot take them back.
        names = copyreg._slotnames(cls)  # type: ignore[attr-defined]
        slots = {name: getattr(self, name) for name in names if hasattr(self, name)}
    if type(state) is dict:
        state = {k: _without_graph(v) for k, v in state.items() if k != "_overrides"}
    if cls is not cls._parametrized:
        # Somebody has derived it, and knows how it is found.
        return *super(cls._parametrized, self).__reduce_ex__(protocol)[:2], state
    base = cls._base_class
    if base.__reduce__ is not object.__reduce__:
        # A class that pickle does not find by its name, and that knows how it is made.
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
    # Without names something waits in a lazy module.
    is_made = names or issubclass(base, LazyModuleMixin)
    cls: Any = parametrized_class(base, names) if is_made else base
    module = cls.__new__(cls)
    for slot, value in slots.items():
        object.__setattr__(module, slot, value)
    return module


def _without_graph(value: Any) -> Any:
    """A list of tensors that a module keeps for itself, fit to be copied.

    A recurrent layer keeps a list of its weights, where values with a graph land; such tensors
    can't be copied, and the layer renews its list when it finds other weights in it.
    """
    if type(value) is list:
        return [
            item.detach() if isinstance(item, Tensor) and item.grad_fn is not None else item
            for item in value
        ]
    return value
