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
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from constrained.constraint.base import Constraint
from constrained.constraint.precision import is_autocast
from constrained.torch_internals import linalg

_DTYPES = (torch.float32, torch.float64)


def plain_rates(optimizer: Optimizer) -> Mapping[int, float]:
    """The learning rates, by the ids of the parameters whose step is ``x - lr * g`` and no more."""
    if type(optimizer) is not SGD or getattr(optimizer, "grad_scale", None) is not None:
        return {}
    rates: dict[int, float] = {}
    for group in optimizer.param_groups:
        is_number = isinstance(group["lr"], (int, float))
        if is_number and not (group["momentum"] or group["weight_decay"] or group["maximize"]):
            rates.update(dict.fromkeys(map(id, group["params"]), float(group["lr"])))
    return rates


class InPlace:
    """The fast way of one tensor.

    Args:
        constraint: its constraint, which works in place.

    Attributes:
        is_smooth: whether the set is.
        is_on: whether the step that is running goes this way.
        lands: whether the set may choose the gradient of a step that is known.
    """

    def __init__(self, constraint: Constraint) -> None:
        self._constraint, self.is_smooth = constraint, constraint.is_smooth()
        self._notes: dict[str, Any] = {}
        self.lands = constraint.lands()
        self.is_on = self._is_landing = False

    def prepare(self, parameter: nn.Parameter, rate: float | None) -> bool:
        """Make the gradient admissible, for an optimizer that goes along it.

        Args:
            parameter: has a gradient.
            rate: the learning rate of a step that is known, see `plain_rates`.

        Returns:
            Whether it could. If not, the tensor is to be treated as any other.
        """
        gradient: Any = parameter.grad
        dtype = parameter.dtype
        if not (
            dtype in _DTYPES
            and gradient.dtype is dtype
            and type(gradient) is Tensor
            and type(parameter) is nn.Parameter
            and gradient.layout is torch.strided
            and parameter.is_contiguous()
            and gradient.is_contiguous()
            and not is_autocast(parameter)
        ):
            return False
        value = parameter.detach()
        self._is_landing = (
            rate is not None
            and self.lands
            and self._constraint.landing_(value, gradient, rate, self._notes)
        )
        if self._is_landing:
            self.is_on = True
        elif self.is_smooth:
            self.is_on = self._constraint.tangent_(value, gradient)
        else:
            self.is_on = math.isfinite(float(linalg.vector_norm(gradient)))
        return self.is_on

    def bring_back(self, parameter: nn.Parameter) -> None:
        """Bring the tensor back after the step."""
        value = parameter.detach()
        if not (self._is_landing and self._constraint.has_landed(value, self._notes)):
            self._constraint.retract_(value)
