"""Bounds that GPyTorch has for the parameters of its modules, next to the constraints here.

GPyTorch reports a value outside of a parameter's bounds by a ``RuntimeError`` with a fixed message.
BoTorch searches for that message when it restarts a fit: it samples hyperparameters from their
priors until one is within its bounds. So a value outside of a set is reported in the same way here.

A bound without a transform is enforced by BoTorch's optimizers, which find it by the name of the
parameter. The free parameters of a constrained tensor have other names, so such a bound is lost,
and there is a warning.

GPyTorch is not imported here.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

import torch
from torch import Tensor

from constrained.constraint.base import Constraint
from constrained.constraint.errors import InfeasibleError
from constrained.constraint.spec import Request
from constrained.model.changes import TensorChange, check_each_change
from constrained.parametrized.call_stack import user_stacklevel
from constrained.parametrized.module_class import contribute

_MODULE, _CLASS = "gpytorch.module", "Module"


class OutOfBoundsError(InfeasibleError, RuntimeError):
    """A value outside of its set was given to ``initialize`` of a module of GPyTorch."""


@contribute
def initialize_methods(base: type, names: tuple[str, ...]) -> dict[str, Any]:
    """The method of a class derived from ``base`` by which GPyTorch sets its parameters."""
    module = getattr(sys.modules.get(_MODULE), _CLASS, None)
    is_one = names and module is not None and issubclass(base, module)
    return {"initialize": _initialize} if is_one else {}


def _initialize(self: Any, **values: Any) -> Any:
    try:
        return super(self._parametrized, self).initialize(**values)  # pyright: ignore[reportUnknownVariableType] - the class is known at run time only
    except ValueError as error:
        # An error from a property or a submodule has this form already.
        if isinstance(error, RuntimeError) or values.keys().isdisjoint(self.parametrizations):
            raise
        raise OutOfBoundsError(
            f"{error} So it is out of bounds of its current constraints."
        ) from error


@check_each_change
def warn_of_lost_bounds(change: TensorChange, request: Request) -> None:
    """Warn that BoTorch does not enforce a bound any more, if the set reaches beyond it.

    Args:
        change: the change that constrains the tensor.
        request: the constraint and its view.
    """
    del request
    constraint = change.parametrizations.constraint()
    if constraint is None:
        return
    for place in change.places:
        find = getattr(place.module, "constraint_for_parameter_name", None)
        bound = None if find is None else find(place.name)
        if bound is None or getattr(bound, "enforced", True):
            continue
        if _reaches_beyond(constraint, bound, change.original):
            warnings.warn(
                f"'{place.path}' had {bound} of GPyTorch, which has no transform: BoTorch keeps it "
                "by the name of the parameter, and that is another one now. So nothing but "
                f"{constraint!r} holds, which reaches beyond it: "
                "choose one inside of these bounds.",
                stacklevel=user_stacklevel(),
            )


def _reaches_beyond(constraint: Constraint, bound: Any, tensor: Tensor) -> bool:
    # Tried with random members, and with constant tensors outside of the bound.
    device = torch.device("cpu") if tensor.is_meta else tensor.device
    seeded = torch.Generator(device).manual_seed(0)
    sample = constraint.sample(tensor.shape, generator=seeded, dtype=tensor.dtype, device=device)
    if not bound.check(sample.to(bound.lower_bound.device)):
        return True
    for end, sign in ((bound.lower_bound, -1), (bound.upper_bound, 1)):
        for distance in (0.01, 1.0, 100.0):
            beyond = (end + sign * distance * end.abs().clamp(min=1e-6)).to(sample)
            if beyond.isfinite().all() and constraint.contains(beyond.expand_as(sample)).any():
                return True
    return False
