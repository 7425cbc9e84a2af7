"""Tensors of lazy modules, which are constrained when they get their shapes.

A lazy module (``nn.LazyLinear``) learns the shapes of its tensors from its first input, or from a
checkpoint. Until then the request to constrain such a tensor is stored in the module. A module with
stored requests has a class that `constrained.parametrized.module_class` makes, with the methods
below. So the request is carried out whoever materializes the tensors, also in copies of the module.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from constrained.atomic.interrupts import defer_interrupts
from constrained.atomic.undo import all_or_nothing
from constrained.constraint.base import Constraint
from constrained.constraint.spec import SETTINGS, Request
from constrained.constraint.view import with_view
from constrained.model.changes import (
    AttachedChange,
    Change,
    TensorChange,
    carry_out,
    change_of,
)
from constrained.model.error_messages import with_path
from constrained.parametrized.checkpoint_metadata import (
    SavedChain,
    recorded_chain,
    value_from_entries,
)
from constrained.parametrized.deferred import defer, deferred, drop_deferred
from constrained.parametrized.module_class import (
    base_class,
    contribute,
    parametrized_class,
    set_class,
)
from constrained.parametrized.parametrization_list import ParametrizationList
from constrained.parametrized.tensor_locations import Location
from constrained.registration.param_groups import ParameterHandover


def check_can_wait(module: nn.Module) -> None:
    """Raise a ValueError unless a module says when its tensors have got their shapes."""
    if not isinstance(module, LazyModuleMixin):
        raise ValueError(
            f"the tensor has no shape yet, and its module, of class {type(module).__name__}, is no "
            "torch.nn.modules.lazy.LazyModuleMixin, which would tell when it has; materialize the "
            "tensor first."
        )


@contribute
def lazy_members(base: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """Members of a lazy module's class, which constrain its tensors once they have shapes.

    Args:
        base: the class without parametrized tensors.
        names: the names of the tensors that are parametrized.
    """
    if not issubclass(base, LazyModuleMixin):
        return {}
    materialized = base.cls_to_become
    if materialized is not None and names:
        materialized = parametrized_class(materialized, names)
    forward = {} if names else {"forward": _forward}
    return {
        **forward,
        # The class that torch gives the module on its first call. The class that the base class
        # names would not have the properties of the parametrized tensors.
        "cls_to_become": materialized,
        "initialize_parameters": _initialize_parameters,
    }


def _forward(self: Any, *args: Any, **kwargs: Any) -> Any:
    # A hook that ran before this has given the module another class.
    forward: Any = type(self).forward  # pyright: ignore[reportUnknownVariableType] - the class is known at run time only
    return (self._base_class.forward if forward is _forward else forward)(self, *args, **kwargs)  # pyright: ignore[reportUnknownVariableType] - the class is known at run time only


def _initialize_parameters(self: Any, *args: Any, **kwargs: Any) -> None:
    self._base_class.initialize_parameters(self, *args, **kwargs)
    constrain_materialized(self)


def materialize_from(
    module: nn.Module, state_dict: Mapping[str, Any], prefix: str, metadata: Mapping[str, Any]
) -> None:
    """Give tensors without shapes the values that they have in a checkpoint, plain or constrained.

    The arguments are those of ``nn.Module._load_from_state_dict``.

    Raises:
        ValueError: if the value of a tensor does not follow from the checkpoint. It names the
            tensor.
    """
    for name, item in deferred(module).items():
        tensor: Any = module._parameters.get(name, module._buffers.get(name))
        value = state_dict.get(prefix + name)
        if value is None:
            inside = f"{prefix}parametrizations.{name}."
            entries = {
                key.removeprefix(inside): entry
                for key, entry in state_dict.items()
                if key.startswith(inside)
            }
            if any(key.startswith("original") for key in entries):
                value = item.value_from(entries, recorded_chain(metadata, name))
        if is_lazy(tensor) and isinstance(value, Tensor) and not is_lazy(value):
            tensor.materialize(value.shape)
            tensor.data.copy_(value)
    constrain_materialized(module)


@dataclass
class LazyChange(Change):
    """A tensor of a lazy module, which will be constrained when it has a shape.

    Until then this object is stored in each of the modules that own the tensor.

    Attributes:
        places: the tensor's locations; empty once this is stored in their modules.
        path: what messages call the tensor.
        request: the constraint with its view and its settings.
        optimizer: the optimizer to give the new parameters to, if it still exists then. A copy of
            this has none.
        done: for tied tensors: the list that parametrizes the tensor in the first owner that
            materialized.
    """

    places: list[Location]
    path: str
    request: Request
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
        """Store this in the owners."""
        places, self.places = self.places, []
        for place in places:
            defer(place.module, place.name, self)
            set_class(place.module, base_class(place.module))

    def change(self, module: nn.Module, name: str) -> TensorChange | AttachedChange:
        """The change to make now that the tensor of a module has its shape."""
        place = Location(self.path, module, name, is_parameter=name in module._parameters)
        original: Any = place.tensor
        if self.done is not None:
            return TensorChange([place], original, self.done, is_new=False)
        return change_of([place], original, self.request)

    def spec(self) -> dict[str, Any] | None:
        """The constraint as plain data; None for a foreign module."""
        constraint, view = self.request.constraint, self.request.view
        if not isinstance(constraint, Constraint):
            return None
        plain = constraint.spec()
        if view is not None:
            plain = with_view(plain, view, self.request.sizes)
        return plain | self.request.settings()

    def value_from(self, entries: Mapping[str, Any], written_for: list[Any] | None) -> Tensor:
        """The value that the tensor's entries in a state dict stand for.

        Args:
            entries: the entries of the state dict under ``parametrizations.<tensor>.``.
            written_for: the parametrizations that its metadata names for them, if it names some.

        Raises:
            ValueError: if the value does not follow from them without the shape of the tensor.
        """
        if self.request.view is not None:
            raise ValueError(
                f"'{self.path}' has no shape yet, and a view does not tell it from a constrained "
                "checkpoint: call the model once on an example before loading."
            )
        module = self.request.build()
        writer = SavedChain.other(written_for, [module], None) if written_for else None
        try:
            if writer is not None and writer.has_only_constraints():
                return writer.value(entries)[0]
            with torch.no_grad():
                return value_from_entries([module], entries)[0]
        except ValueError as error:
            raise with_path(self.path, error) from error.__cause__

    def __repr__(self) -> str:
        view = "" if self.request.view is None else f" viewed as {self.request.view!r}"
        return f"{self.request.constraint!r}{view}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "optimizer": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Before version 0.3 the start was an attribute of its own, and there was no other mode.
        old = {"init": state.pop("init")} if "init" in state else {}
        request: Request = state["request"]
        missing = {k: v for k, v in {**SETTINGS, **old}.items() if getattr(request, k) is None}
        state = {**state, "request": replace(request, **missing)}
        for name, value in state.items():
            setattr(self, name, value)


def constrain_materialized(module: nn.Module) -> None:
    """Carry out the changes that are stored in a lazy module, for the tensors that have shapes."""
    items: dict[str, Any] = deferred(module)
    if not items:
        return
    tensors: dict[str, Any] = {**module._parameters, **module._buffers}
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
            if isinstance(change, TensorChange):
                item.done = change.parametrizations


def stop(here: list[Location]) -> None:
    """Remove the change that is stored for a tensor without a shape from all of its modules."""
    for place in here:
        drop_deferred(place.module, place.name)
        set_class(place.module, base_class(place.module))
