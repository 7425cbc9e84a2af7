"""Bounds that GPyTorch has for the parameters of its modules, beside the constraints here.

GPyTorch reports a value outside of a parameter's bounds by a ``RuntimeError`` with words of its
own. BoTorch searches for these words when it restarts a fit: it samples hyperparameters from their
priors until one is within their bounds. So a value that a constraint here refuses is reported in
the same way.

A bound without a transform is kept by BoTorch's optimizers, which find it by the name of the
parameter. The free parameters of a constrained tensor have other names, so that bound is lost.

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
        # An error of a property or a submodule has this form already.
        if isinstance(error, RuntimeError) or values.keys().isdisjoint(self.parametrizations):
            raise
        raise OutOfBoundsError(
            f"{error} So it is out of bounds of its current constraints."
        ) from error


@check_each_change
def warn_of_lost_bounds(change: TensorChange, request: Request) -> None:
    """Warn of a bound that a tensor had by its name alone, if its set reaches beyond the bound.

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
    # By random members, and for a set of single numbers by numbers outside of the bound.
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
