"""Adding a parametrization to a tensor: the first one, or one more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from constrained.atomic.contents import recording
from constrained.atomic.interrupts import defer_interrupts
from constrained.atomic.undo import all_or_nothing, around, tensors_of
from constrained.constraint.base import Constraint
from constrained.parametrized.consistency_checks import check_appended
from constrained.parametrized.originals_index import list_with_original
from constrained.parametrized.parametrization_list import ParametrizationList
from constrained.parametrized.tensor_locations import (
    is_parametrized,
    list_of,
    resolve,
    tied_locations,
    why_not_registered,
)
from constrained.parametrized.writable_tensor import flush_writes
from constrained.registration.from_torch import convert_from_torch
from constrained.registration.install import check_can_hold, install
from constrained.registration.param_groups import ParameterHandover, check_holds, check_optimizer
from constrained.registration.wrappers import check_not_wrapped


class Function(nn.Module):
    """A plain function as a parametrization. It has no right inverse.

    Args:
        function: maps a tensor to a tensor.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *originals: Tensor) -> Tensor:
        """Call the function."""
        return self.function(*originals)

    def extra_repr(self) -> str:
        """The name of the function."""
        return getattr(self.function, "__name__", repr(self.function))


def register_parametrization(
    module: nn.Module,
    tensor_name: str,
    parametrization: nn.Module | Callable[..., Tensor],
    *,
    unsafe: bool = False,
    optimizer: Optimizer | None = None,
) -> nn.Module:
    """Parametrize a tensor of a module.

    Afterwards ``module.<tensor_name>`` is computed from originals, which live under
    ``module.parametrizations.<tensor_name>``. ``module.<tensor_name> = value`` stores originals
    that have this value. If a tensor is parametrized several times, its parametrizations are
    applied one after another.

    As in ``torch.nn.utils.parametrize``, but:

    * ``tensor_name`` may be a dotted path into ``module``, and every tensor of ``module`` that is
      tied to the one it names stays tied to it; tied tensors that are parametrized one after the
      other, in the same way, stay tied too;
    * a plain function is accepted as a parametrization;
    * after an error the module is as it was;
    * a tensor that a `Constraint` maps from one trained tensor and constants keeps its identity.

    Args:
        module: the module, or a model that has it.
        tensor_name: a parameter or buffer, or one that is parametrized already.
        parametrization: has ``forward``, from originals to the value, and mostly
            ``right_inverse``, from a value to originals (one tensor, or several if it comes first).
        unsafe: leave out the checks, so that shape and dtype may change.
        optimizer: an optimizer that holds the tensor: it is given the parameters that replace it.
            Without it, an optimizer that still holds a tensor which left the model warns at its
            next step.

    Returns:
        ``module``.

    Raises:
        ValueError: if there is no such tensor, the parametrization does not fit it, or the
            optimizer holds nothing of it although it is trained.
        TypeError: if the parametrization is neither a module nor a function.
        RuntimeError: if DistributedDataParallel or FSDP has wrapped the module already.
    """
    check_optimizer(optimizer)
    if not isinstance(parametrization, nn.Module):
        if not callable(parametrization):
            raise TypeError(
                "A parametrization must be a torch.nn.Module or a function, got "
                f"{type(parametrization).__name__}."
            )
        parametrization = Function(parametrization)
    owner, name = resolve(module, tensor_name)
    check_holds(optimizer, [(owner, name, tensor_name)])
    handover = ParameterHandover(owner, name, tensor_name)
    with defer_interrupts(), all_or_nothing(parametrization.modules()):
        parametrization.train(owner.training)
        if is_parametrized(owner, name):
            changed = [*around([owner]), *parametrization.modules()]
            with all_or_nothing(changed, tensors_of(changed), optimizer):
                _append(owner, name, parametrization, unsafe)
                handover.apply(optimizer)
            return module
        if name not in owner._parameters and name not in owner._buffers:
            reason = why_not_registered(owner, name)
            raise ValueError(
                f"Module '{module}' does not have a parameter, a buffer, or a "
                f"parametrized element with name '{tensor_name}'{reason and ': ' + reason}"
            )
        tensor = getattr(owner, name)
        _check_has_shape(tensor, tensor_name, owner)
        locations = tied_locations(module, tensor) if "." in tensor_name else [(owner, name)]
        for location in locations:
            check_can_hold(*location)
        with recording(tensor):
            tied: Any = list_with_original(tensor)
            is_new = tied is None or tied is owner
            if is_new:
                found = ParametrizationList([parametrization], tensor, unsafe, deferred=True)
            else:
                found = cast("ParametrizationList", tied)
                _check_same(tensor_name, found, parametrization)
            changed = [*around(tied_owner for tied_owner, _ in locations), *found.modules()]
            with all_or_nothing(changed, [tensor], optimizer):
                if is_new:
                    found.attach(tensor)
                for location in locations:
                    install(*location, found)
                handover.apply(optimizer)
    return module


def _check_has_shape(tensor: Tensor | None, path: str, owner: nn.Module) -> None:
    """Raise if there is no tensor yet that could be parametrized."""
    if tensor is None:
        raise ValueError(
            f"'{path}' of {type(owner).__name__} is None: there is no tensor to parametrize."
        )
    if is_lazy(tensor):
        raise ValueError(
            f"'{path}' of {type(owner).__name__} has no shape yet: call the model once on an "
            "example first, or use constrained.constrain(), which waits for it."
        )


def _append(module: nn.Module, name: str, parametrization: nn.Module, unsafe: bool) -> None:
    check_not_wrapped(module, name)
    flush_writes(module, name)
    convert_from_torch(module)
    parametrizations = list_of(module, name)
    value = getattr(module, name)
    parametrizations.append(parametrization)
    if not unsafe:
        check_appended(name, value, parametrization)
    parametrizations.unsafe |= unsafe


def _check_same(name: str, tied: ParametrizationList, parametrization: nn.Module) -> None:
    """Raise unless the tied tensor that is parametrized already has the same parametrization."""
    (first, *more) = tied.children()
    if isinstance(first, Constraint) and isinstance(parametrization, Constraint):
        same = first.spec() == parametrization.spec()
    else:
        same = type(first) is type(parametrization)
    if more or not same:
        raise ValueError(
            f"'{name}' is tied to a tensor that is parametrized by "
            f"{', '.join(type(p).__name__ for p in tied.children())}; tied tensors have one "
            f"parametrization, and {type(parametrization).__name__} is another one."
        )
