"""Where the tensors of a model are: pairs of a module and a name in it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize as torch_parametrize

from constrained.constraint.plain_data import short

is_parametrized = torch_parametrize.is_parametrized


def check_model(model: object) -> None:
    """Raise a `TypeError` unless it is a module, which has tensors in places."""
    if not isinstance(model, nn.Module):
        kind = "" if isinstance(model, Tensor) else f" ({type(model).__name__})"
        raise TypeError(f"A model is a torch.nn.Module, got {short(model)}{kind}.")


def resolve(module: nn.Module, path: str) -> tuple[nn.Module, str]:
    """The submodule that owns the tensor at a dotted path, and the tensor's name in it.

    Raises:
        ValueError: if there is no such submodule.
    """
    prefix, _, name = path.rpartition(".")
    owner = module
    for part in prefix.split(".") if prefix else ():
        child = owner._modules.get(part)
        if child is None:
            raise ValueError(
                f"{type(module).__name__} has no tensor '{path}': its part '{part}' does not exist."
            )
        owner = child
    return owner, name


def tied_places(root: nn.Module, tensor: Tensor) -> list[tuple[nn.Module, str]]:
    """Every place under ``root`` where this very tensor is registered."""
    return [
        (module, name)
        for module in root.modules()
        for tensors in (module._parameters, module._buffers)
        for name, other in tensors.items()
        if other is tensor
    ]


def places_of(root: nn.Module, parametrizations: nn.Module) -> list[tuple[nn.Module, str]]:
    """Every place under ``root`` that is parametrized by this very list."""
    return [
        (module, name)
        for module in root.modules()
        if is_parametrized(module)
        for name, other in module.parametrizations.items()  # type: ignore[operator]
        if other is parametrizations
    ]


def list_of(module: nn.Module, name: str) -> Any:
    """The list that parametrizes a tensor: a `ParametrizationList`, or torch's."""
    parametrizations: Any = module.parametrizations
    return parametrizations[name]


def parameters_at(module: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """The parameters that make up the tensor of that name, by their names in the module."""
    if is_parametrized(module, name):
        path = f"parametrizations.{name}."
        return {path + n: p for n, p in list_of(module, name).named_parameters()}
    tensor = module._parameters.get(name)
    return {} if tensor is None else {name: tensor}
