"""Tensors of lazy modules, which get their constraints when they get their shapes.

A lazy module (``nn.LazyLinear``) learns the shapes of its tensors from its first input, or from a
checkpoint. What is asked of such a tensor waits in the module until then. The class of a module in
which something waits is one that `constrained.parametrized_class` makes, with the methods below:
so whoever lets the tensors materialize, and however the module was copied, the constraint comes.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from constrained.atomic.interrupts import defer_interrupts
from constrained.atomic.undo import all_or_nothing
from constrained.constraint.base import Constraint
from constrained.constraint.spec import Request
from constrained.model.changes import Change, TensorChange, carry_out, change_of
from constrained.parametrized.checkpoint_metadata import SavedChain, recorded_chain
from constrained.parametrized.deferred import defer, deferred, drop_deferred
from constrained.parametrized.locations import Location
from constrained.parametrized.module_class import (
    base_class,
    contribute,
    parametrized_class,
    set_class,
)
from constrained.parametrized.parametrization_list import ParametrizationList
from constrained.registration.param_groups import ParameterHandover


def check_can_wait(module: nn.Module) -> None:
    """Raise unless a module tells when its tensors have got their shapes."""
    if not isinstance(module, LazyModuleMixin):
        raise ValueError(
            f"the tensor has no shape yet, and its module, of class {type(module).__name__}, is no "
            "torch.nn.modules.lazy.LazyModuleMixin, which would tell when it has; materialize the "
            "tensor first."
        )


@contribute
def lazy_members(base: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """By which a lazy module becomes one of its plain class, and its tensors are constrained then.

    Args:
        base: the class without parametrized tensors.
        names: the names of the tensors that are parametrized.
    """
    if not issubclass(base, LazyModuleMixin):
        return {}
    then = base.cls_to_become
    forward = {} if names else {"forward": _forward}
    return {
        **forward,
        # What torch lets the module become, which would forget that it has parametrized tensors.
        "cls_to_become": parametrized_class(then, names) if then is not None and names else then,
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
    for name, item in deferred(module).items():
        tensor: Any = module._parameters.get(name, module._buffers.get(name))
        value = state_dict.get(prefix + name)
        if value is None:
            inside = f"{prefix}parametrizations.{name}."
            keys = [key for key in state_dict if key.startswith(inside)]
            state = {key.removeprefix(inside): state_dict[key] for key in keys}
            if any(key.startswith("original") for key in state):
                value = item.value_from(state, recorded_chain(metadata, name))
        if is_lazy(tensor) and isinstance(value, Tensor) and not is_lazy(value):
            tensor.materialize(value.shape)
            tensor.data.copy_(value)
    _materialized(module)


def _materialized(module: nn.Module) -> None:
    if deferred(module):
        constrain_materialized(module)


@dataclass
class LazyChange(Change):
    """A tensor of a lazy module, which will be constrained when it has a shape.

    It is what waits in the modules that have the tensor; see `constrained.lazy`.

    Attributes:
        places: where it is; forgotten once it waits.
        path: what messages call the tensor.
        request: what is asked for.
        init: how it starts.
        optimizer: who is to be told, if it is still alive then; copies have forgotten it.
        done: what took the tensor's place in the first of its owners to materialize.
    """

    places: list[Location]
    path: str
    request: Request
    init: str
    optimizer: weakref.ref[Optimizer] | None = None
    done: ParametrizationList | None = None
    is_new: bool = True
    flat: tuple[int, int] = (0, 0)

    def tensors(self) -> list[Tensor]:
        """No tensor changes."""
        return []

    def handover(self) -> ParameterHandover | None:
        """Nothing changes yet for an optimizer."""
        return None

    def do(self) -> None:
        """Begin to wait."""
        places, self.places = self.places, []
        for place in places:
            defer(place.module, place.name, self)
            set_class(place.module, base_class(place.module))

    def change(self, module: nn.Module, name: str) -> TensorChange:
        """What is to be done now that the tensor of a module has its shape."""
        place = Location(self.path, module, name, is_parameter=name in module._parameters)
        original: Any = place.tensor
        if self.done is not None:
            return TensorChange([place], original, self.done, is_new=False)
        return change_of([place], original, self.request, self.init)

    def spec(self) -> dict[str, Any] | None:
        """The constraint as plain data; None for a foreign module."""
        constraint, view = self.request.constraint, self.request.view
        if not isinstance(constraint, Constraint):
            return None
        more: dict[str, Any] = {} if view is None else {"view": view, **self.request.sizes}
        if self.init != "keep":
            more["init"] = self.init
        return {**constraint.spec(), **more}

    def value_from(self, state: Mapping[str, Any], said: list[Any] | None) -> Tensor:
        """The value that belongs to the originals in a state dict, by their names there.

        Args:
            state: the entries of the tensor.
            said: what the state dict says that they were written for, if it does.

        Raises:
            ValueError: if only the shape of the tensor would tell.
        """
        if self.request.view is not None:
            raise ValueError(
                f"'{self.path}' has no shape yet, and a view does not tell it from a constrained "
                "checkpoint: call the model once on an example before loading."
            )
        module = self.request.build()
        writer = SavedChain.other(said, [module], None) if said else None
        if writer is not None and writer.has_only_constraints():
            return writer.value(state)[0]
        own = {k.removeprefix("0."): v for k, v in state.items() if k.startswith("0.")}
        module.load_state_dict(own, strict=False)
        count = sum(key.startswith("original") for key in state)
        names = ["original"] if "original" in state else [f"original{i}" for i in range(count)]
        with torch.no_grad():
            return module(*(state[name] for name in names))

    def __repr__(self) -> str:
        view = "" if self.request.view is None else f" viewed as {self.request.view!r}"
        return f"{self.request.constraint!r}{view}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "optimizer": None}


def constrain_materialized(module: nn.Module) -> None:
    """Constrain those tensors of a lazy module that have waited for a shape, and have it now."""
    tensors: dict[str, Any] = {**module._parameters, **module._buffers}
    items: dict[str, Any] = deferred(module)
    ready = [
        (name, item, item.change(module, name))
        for name, item in items.items()
        if tensors.get(name) is not None and not is_lazy(tensors[name])
    ]
    changed = [changed for _, _, change in ready for changed in change.modules()]
    with defer_interrupts():
        with all_or_nothing(changed, [change.original for _, _, change in ready]):
            for name, item, change in ready:
                drop_deferred(module, name)
                carry_out([change], item.optimizer and item.optimizer())
        for _, item, change in ready:
            item.done = change.parametrizations


def stop(here: list[Location]) -> None:
    """Let nothing wait for a tensor any more, at any of its places."""
    for place in here:
        drop_deferred(place.module, place.name)
        set_class(place.module, base_class(place.module))
