"""Tensors of lazy modules, which get their constraints when they get their shapes.

A lazy module (``nn.LazyLinear``) learns the shapes of its tensors from its first input, or from a
checkpoint. What is asked of such a tensor waits in the module until then. The class of a module in
which something waits is one that `constrained.parametrized_class` makes, with the methods below:
so whoever lets the tensors materialize, and however the module was copied, the constraint comes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy

from constrained.writer import signature


class Waiting(Protocol):
    """What is asked of a tensor that has no shape yet; tied tensors share it."""

    path: str

    def spec(self) -> dict[str, Any] | None:
        """The constraint as plain data; None for a foreign module."""
        ...

    def value_from(self, state: Mapping[str, Any], said: list[Any] | None) -> Tensor:
        """The value that belongs to the originals in a state dict, by their names there."""
        ...


def waiting(module: nn.Module) -> dict[str, Waiting]:
    """What waits in a module, by the names of its tensors. Not a copy."""
    return module.__dict__.get("_waiting", {})


def wait(module: nn.Module, name: str, item: Waiting) -> None:
    """Let something wait for a tensor. Give the module its new class afterwards."""
    module.__dict__.setdefault("_waiting", {})[name] = item


def stop_waiting(module: nn.Module, name: str) -> None:
    """Undo `wait`. Give the module its new class afterwards."""
    items = module.__dict__["_waiting"]
    del items[name]
    if not items:
        del module.__dict__["_waiting"]


def check_can_wait(module: nn.Module) -> None:
    """Raise unless a module tells when its tensors have got their shapes."""
    if not isinstance(module, LazyModuleMixin):
        raise ValueError(
            f"the tensor has no shape yet, and its module, of class {type(module).__name__}, is no "
            "torch.nn.modules.lazy.LazyModuleMixin, which would tell when it has; materialize the "
            "tensor first."
        )


def lazy_methods(
    base: Any, names: tuple[str, ...], parametrized: Callable[[Any, tuple[str, ...]], Any]
) -> dict[str, Any]:
    """The members of a class with parametrized tensors by which a lazy one becomes its plain class.

    Args:
        base: the class without parametrized tensors.
        names: the names of the tensors that are.
        parametrized: makes a class of these two.
    """
    if not issubclass(base, LazyModuleMixin):
        return {}
    then = base.cls_to_become
    forward = {} if names else {"forward": _forward}
    return {
        **forward,
        # What torch lets the module become, which would forget that it has parametrized tensors.
        "cls_to_become": parametrized(then, names) if then is not None and names else then,
        "initialize_parameters": _initialize_parameters,
    }


def _forward(self: Any, *args: Any, **kwargs: Any) -> Any:
    # Called when the hooks have run, of which one has given the module another class by now.
    forward: Any = type(self).forward
    return (self._base_class.forward if forward is _forward else forward)(self, *args, **kwargs)


def _initialize_parameters(self: Any, *args: Any, **kwargs: Any) -> None:
    self._base_class.initialize_parameters(self, *args, **kwargs)
    _materialized(self)


def materialize_from(
    module: nn.Module, state_dict: Mapping[str, Any], prefix: str, metadata: Mapping[str, Any]
) -> None:
    """Give waiting tensors the values that they have in a checkpoint, plain or constrained."""
    for name, item in waiting(module).items():
        tensor: Any = module._parameters.get(name, module._buffers.get(name))
        value = state_dict.get(prefix + name)
        if value is None:
            inside = f"{prefix}parametrizations.{name}."
            keys = [key for key in state_dict if key.startswith(inside)]
            state = {key.removeprefix(inside): state_dict[key] for key in keys}
            if any(key.startswith("original") for key in state):
                value = item.value_from(state, signature(metadata, name))
        if is_lazy(tensor) and isinstance(value, Tensor) and not is_lazy(value):
            tensor.materialize(value.shape)
            tensor.data.copy_(value)
    _materialized(module)


def _materialized(module: nn.Module) -> None:
    # Imported here, since it is built on what uses this.
    from constrained.change import constrain_materialized

    if waiting(module):
        constrain_materialized(module)


def waiting_tensors(model: nn.Module) -> Iterator[tuple[str, Waiting]]:
    """Everything that waits in a model, each once, with the path that it was asked for by."""
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for name, item in waiting(module).items():
            if id(item) not in seen:
                seen.add(id(item))
                yield f"{prefix}.{name}" if prefix else name, item
