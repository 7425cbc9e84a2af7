"""Steps of plain tensors in place: no copies, and as few passes over memory as the set allows.

`constrained.training.projected_step` treats every case. Most tensors are of a simple one: a dense
parameter in single or double precision, whose set has methods that work in place, under an
optimizer that goes along the gradient. A step of SGD takes little longer than reading its tensors a
few times, so these are not copied, nor searched for NaN more often than once.

The step of plain SGD, ``x - lr * g``, is known beforehand. There a set may choose the gradient so
that the step ends in it (`Geometry.landing_`), and all that is left for afterwards is a check.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

from constrained.constraint.base import Constraint
from constrained.constraint.precision import is_autocast
from constrained.torch_internals import linalg

_DTYPES = (torch.float32, torch.float64)


def is_plain(tensor: Tensor | None) -> bool:
    """Whether methods that work in place may be given a parameter, or a gradient."""
    return (
        type(tensor) in (Tensor, torch.nn.Parameter)
        and tensor is not None
        and tensor.layout is torch.strided
        and tensor.dtype in _DTYPES
        and tensor.is_contiguous()
        and not is_autocast(tensor)
    )


def plain_rate(optimizer: Optimizer, parameter: Tensor) -> float | None:
    """The learning rate if the step is ``x - lr * g`` and nothing else."""
    if type(optimizer) is not SGD or getattr(optimizer, "grad_scale", None) is not None:
        return None
    groups = optimizer.param_groups
    for group in groups:
        if len(groups) > 1 and not any(p is parameter for p in group["params"]):
            continue
        if group["momentum"] or group["weight_decay"] or group["maximize"]:
            return None
        return float(group["lr"])
    return None


class InPlace:
    """The fast way of one tensor.

    Args:
        constraint: its constraint, which works in place.

    Attributes:
        is_on: whether the step that is running goes this way.
    """

    def __init__(self, constraint: Constraint) -> None:
        self._constraint, self._is_smooth = constraint, constraint.is_smooth()
        self._lands = constraint.lands()
        self._notes: dict[str, Any] = {}
        self.is_on = self._is_landing = False

    def prepare(self, optimizer: Optimizer, parameter: Tensor) -> bool:
        """Make the gradient admissible, for an optimizer that goes along it.

        Returns:
            Whether it could. If not, the tensor is to be treated as any other.
        """
        gradient: Any = parameter.grad
        self.is_on = self._is_landing = False
        if not (is_plain(parameter) and is_plain(gradient) and gradient.dtype == parameter.dtype):
            return False
        value = parameter.detach()
        if self._lands:
            rate = plain_rate(optimizer, parameter)
            if rate is not None:
                landing = self._constraint.landing_(value, gradient, rate, self._notes)
                self.is_on = self._is_landing = landing
        if not self.is_on:
            if self._is_smooth:
                self.is_on = self._constraint.tangent_(value, gradient)
            else:
                self.is_on = math.isfinite(float(linalg.vector_norm(gradient)))
        return self.is_on

    def bring_back(self, parameter: Tensor) -> None:
        """Bring the tensor back after the step."""
        value = parameter.detach()
        if not (self._is_landing and self._constraint.has_landed(value, self._notes)):
            self._constraint.retract_(value)
        self.is_on = False
