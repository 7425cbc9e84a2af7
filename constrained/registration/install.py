"""Replacing a plain tensor of a module by its list of parametrizations, and the other way round."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from constrained.parametrized.module_class import (
    base_class,
    class_names,
    is_parametrized_class,
    parametrized_class,
    set_class,
)
from constrained.parametrized.parametrization_list import ParametrizationList
from constrained.parametrized.parametrizations import Parametrizations
from constrained.registration.from_torch import convert_from_torch
from constrained.registration.wrappers import check_not_wrapped


def check_can_change_class(module: nn.Module) -> None:
    """Raise if the module is compiled, or a wrapper such as FSDP has given it another class."""
    if isinstance(module, torch.jit.ScriptModule):
        raise ValueError(
            "its module is compiled by torch.jit, and its tensors stay as they are: constrain the "
            "model before; constrained.release(copy.deepcopy(model)) can be compiled."
        )
    if hasattr(type(module), "_base_class") and not is_parametrized_class(type(module)):
        raise RuntimeError(
            f"{type(module).__name__} was wrapped after it was parametrized; register and remove "
            "parametrizations before wrapping."
        )


def check_can_hold(module: nn.Module, name: str) -> None:
    """Raise, before anything has changed, if a tensor of this name cannot be parametrized."""
    check_not_wrapped(module, name)
    check_can_change_class(module)
    _check_not_of_pyro(module, name)
    existing = getattr(module, "parametrizations", None)
    if existing is not None and not isinstance(existing, nn.ModuleDict):
        raise ValueError(
            f"{type(module).__name__} has an attribute 'parametrizations' of its own, which is "
            "where parametrizations live."
        )
    container = Parametrizations(module) if existing is None else existing
    if hasattr(container, name) and name not in container:
        raise ValueError(
            f"a tensor called '{name}' cannot be parametrized, since ModuleDict, of which "
            f"'parametrizations' is one, has an attribute of that name: call it otherwise."
        )
    # This raises for a base class that cannot be subclassed.
    parametrized_class(base_class(module), class_names(module, name))


def _check_not_of_pyro(module: nn.Module, name: str) -> None:
    """Raise if a tensor is the free parameter of a ``PyroParam``, which Pyro trains and assigns."""
    value = name.removesuffix("_unconstrained")
    if value != name and value in getattr(module, "_pyro_params", ()):
        raise ValueError(
            f"'{name}' is what Pyro computes '{value}' from, a PyroParam with a constraint of its "
            f"own: make '{value}' an nn.Parameter instead, and constrain that."
        )


def install(module: nn.Module, name: str, parametrizations: ParametrizationList) -> None:
    """Replace the parameter or buffer of that name by a list of parametrizations."""
    convert_from_torch(module)
    base = base_class(module)
    if "parametrizations" not in module._modules:
        module.parametrizations = Parametrizations(module)
    parametrizations.persistent = name not in module._non_persistent_buffers_set
    if not parametrizations.persistent:
        parametrizations._non_persistent_buffers_set.update(parametrizations._buffers)
    delattr(module, name)
    module.parametrizations[name] = parametrizations  # type: ignore[operator]
    set_class(module, base)


def share(module: nn.Module, name: str, parametrizations: ParametrizationList) -> None:
    """Tie a parametrized tensor to another one: it gets the list of the other."""
    found = module.parametrizations
    assert isinstance(found, Parametrizations)
    found[name]._owners.discard(found)  # type: ignore[union-attr]
    found[name] = parametrizations


def uninstall(module: nn.Module, name: str, tensor: Tensor, persistent: bool) -> None:
    """Replace a list by a plain tensor, at its former position in the module's order."""
    parametrizations = module.parametrizations
    assert isinstance(parametrizations, Parametrizations)
    order = parametrizations.tensor_order()
    base = base_class(module)
    parametrizations[name]._owners.discard(parametrizations)  # type: ignore[union-attr]
    del parametrizations[name]
    if len(parametrizations) == 0:
        del module._modules["parametrizations"]
    set_class(module, base)
    if isinstance(tensor, nn.Parameter):
        module.register_parameter(name, tensor)
        sort(module._parameters, order)
    else:
        module.register_buffer(name, tensor, persistent=persistent)
        sort(module._buffers, order)


def sort(tensors: dict[str, Any], order: tuple[str, ...]) -> None:
    """Bring the parameters or buffers of a module into an order; further ones come last."""
    positions = {name: i for i, name in enumerate(order)}
    for name in sorted(tensors, key=lambda n: positions.get(n, len(order))):
        tensors[name] = tensors.pop(name)
