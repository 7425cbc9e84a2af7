"""Where the tensors of a model are registered, and which of them are parametrized.

A location is a module and the name of a tensor in it. A tied tensor has several.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize as torch_parametrize

from constrained.attached.attached_constraint import (
    AttachedConstraint,
    attached,
    attached_constraints,
)
from constrained.constraint.base import Constraint
from constrained.constraint.plain_data import short
from constrained.parametrized.parametrization_list import ParametrizationList
from constrained.torch_internals.modules import hooks_of

is_parametrized = torch_parametrize.is_parametrized


def check_model(model: object) -> None:
    """Raise a `TypeError` unless a model is a module."""
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


def why_not_registered(module: nn.Module, name: str) -> str:
    """Why a tensor of that name is neither a parameter nor a buffer; "" if there is none."""
    if not isinstance(module.__dict__.get(name), Tensor):
        return ""
    kind = type(module).__name__
    if not any(hooks_of(module)):
        return (
            f"'{name}' is a tensor that {kind} has as a plain attribute: make it a parameter or a "
            "buffer first, by nn.Parameter or register_buffer."
        )
    return (
        f"'{name}' is an attribute of {kind} that is computed anew before each forward: make it a "
        "parameter first, as by torch.nn.utils.prune.remove, remove_weight_norm or "
        "remove_spectral_norm."
    )


def tied_locations(root: nn.Module, tensor: Tensor) -> list[tuple[nn.Module, str]]:
    """Every location under ``root`` where this very tensor is registered."""
    return [
        (module, name)
        for module in root.modules()
        for tensors in (module._parameters, module._buffers)
        for name, other in tensors.items()
        if other is tensor
    ]


def locations_of(root: nn.Module, parametrizations: nn.Module) -> list[tuple[nn.Module, str]]:
    """Every location under ``root`` that is parametrized by this very list."""
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
    """The parameters that a tensor is computed from, or is itself, by their names in the module."""
    if is_parametrized(module, name):
        path = f"parametrizations.{name}."
        return {path + n: p for n, p in list_of(module, name).named_parameters()}
    tensor = module._parameters.get(name)
    return {} if tensor is None else {name: tensor}


@dataclass(frozen=True)
class Location:
    """Where a tensor is registered.

    Attributes:
        path: the dotted path from the model.
        module: the submodule that owns it.
        name: its name there.
        is_parameter: a parameter or parametrized tensor, which globs match; else a buffer.
    """

    path: str
    module: nn.Module
    name: str
    is_parameter: bool

    @property
    def tensor(self) -> Tensor | nn.Module:
        """The registered tensor, or the list that parametrizes it. Tied tensors have the same."""
        if is_parametrized(self.module, self.name):
            return self.module.parametrizations[self.name]  # type: ignore[index]
        tensors = self.module._parameters if self.is_parameter else self.module._buffers
        return tensors[self.name]  # type: ignore[return-value]

    @property
    def holder(self) -> nn.Module | AttachedConstraint | None:
        """What constrains the tensor: its list, or what is attached; None if nothing does."""
        found = self.tensor
        return found if isinstance(found, nn.Module) else attached(self.module).get(self.name)


def locations(model: nn.Module) -> dict[str, Location]:
    """Every tensor of a model by its path, in the order of parameters; tied ones by all paths."""
    check_model(model)
    found: dict[str, Location] = {}
    for prefix, module in _modules(model, ""):
        kinds = [(n, True) for n, t in module._parameters.items() if t is not None]
        if is_parametrized(module):
            kinds += [(name, True) for name in module.parametrizations]  # type: ignore[union-attr]
        kinds += [(n, False) for n, t in module._buffers.items() if t is not None]
        for name, is_parameter in kinds:
            path = f"{prefix}.{name}" if prefix else name
            found[path] = Location(path, module, name, is_parameter)
    return found


def _modules(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    yield prefix, module
    for name, child in module._modules.items():
        if child is None or (name == "parametrizations" and is_parametrized(module)):
            continue
        yield from _modules(child, f"{prefix}.{name}" if prefix else name)


#: What holds the constraint of a tensor: its list if it is parametrized, or, if it is a plain
#: parameter, an object that is attached to its module.
Holder = ParametrizationList | AttachedConstraint


def constrained_tensors(model: nn.Module) -> Iterator[tuple[str, Holder, Constraint]]:
    """Each tensor of a model that has a constraint: its first path, its holder, the constraint."""
    held: dict[str, tuple[Holder, Constraint]] = {}
    for path, found in parametrized_tensors(model):
        if isinstance(found, ParametrizationList):
            constraint = found.constraint()
            if constraint is not None:
                held[path] = found, constraint
    held |= {path: (found, found.constraint()) for path, found in attached_constraints(model)}
    for path in in_order(model, held):
        yield path, *held[path]


def in_order(model: nn.Module, paths: Iterable[str]) -> list[str]:
    """Paths in the order in which a model has their tensors; others come last."""
    places = {path: i for i, path in enumerate(locations(model))}
    return sorted(paths, key=lambda path: places.get(path, len(places)))


def constrained_lists(model: nn.Module) -> Iterator[tuple[str, ParametrizationList]]:
    """Each tensor of a model that a constraint parametrizes: its first path, and its list."""
    for path, found, _ in constrained_tensors(model):
        if isinstance(found, ParametrizationList):
            yield path, found


def parametrized_tensors(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Each parametrized tensor of a model: its first path, its list, which may be torch's own."""
    seen: set[int] = set()
    for path, location in locations(model).items():
        found = location.tensor
        if isinstance(found, nn.Module) and id(found) not in seen:
            seen.add(id(found))
            yield path, found
    # A GraphModule of torch.fx holds lists in plain modules, which have no tensor of that name.
    for path, module in _modules(model, ""):
        is_list = isinstance(module, ParametrizationList) and module is not model
        if is_list and id(module) not in seen:
            seen.add(id(module))
            yield path.replace("parametrizations.", ""), module


def is_constrained(location: Location) -> bool:
    """Whether `constrain` has parametrized a tensor, and not a `register_parametrization`."""
    found = location.tensor
    return isinstance(found, ParametrizationList) and found.is_constrained()
