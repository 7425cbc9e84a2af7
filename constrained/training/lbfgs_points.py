"""L-BFGS and tensors that stay plain parameters: it goes on from points outside of the sets.

L-BFGS compares steps. A point that is brought back into its set after each of them would not be
where the last gradient was, and its history would be wrong. So it minimizes the composition of the
loss with a map onto the set, `Geometry.nearby`, and is given the gradient of that. Between two
steps the parameters are members; the points that these stand for are kept, and L-BFGS goes on from
there. Once it has come to rest it starts again from the members.

A point outside of a set with a boundary has hardly a gradient in the direction that leads out. So
in such sets it starts each step from the members, with a new history if they are elsewhere.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import LBFGS

from constrained.atomic import sharded
from constrained.atomic.contents import store
from constrained.attached.attached_constraint import AttachedConstraint
from constrained.constraint.base import Constraint
from constrained.constraint.tolerance import tolerance
from constrained.training.lbfgs_history import History, has_moved
from constrained.training.nonfinite import is_finite_point, step_too_long


class OutsidePoints:
    """The points that the projected tensors of an L-BFGS stand for.

    Args:
        optimizer: the optimizer.
        tensors: the projected tensors that it trains.
        parameters: their parameters.
    """

    def __init__(
        self,
        optimizer: LBFGS,
        tensors: Sequence[AttachedConstraint],
        parameters: Sequence[Tensor],
    ) -> None:
        self._optimizer = weakref.ref(optimizer)
        self._tensors, self._parameters = tensors, parameters
        self._members: list[Tensor] = []
        self._outside: list[Tensor] = []
        self._history = History(optimizer)

    @torch.no_grad()
    def begin(self) -> None:
        """Go on from the points outside, unless the parameters have been written since."""
        optimizer = self._optimizer()
        assert optimizer is not None
        self._history = History(optimizer)
        here = [torch.equal(p, m) for p, m in zip(self._parameters, self._members, strict=False)]
        if len(here) == len(self._parameters) and all(here):
            self._write(self._outside)
        else:
            self._history.forget()

    def evaluating_inside(self, closure: Any, check: Callable[[], object]) -> Any:
        """A closure that evaluates the loss at the members, and pulls the gradients back.

        Args:
            closure: it computes the loss and its gradients.
            check: called when the gradients are there, before they are used.
        """

        def call(*args: Any, **kwargs: Any) -> Any:
            outside = self._copies()
            with torch.no_grad():
                self._write(self._reached(Constraint.nearby))
            try:
                loss = closure(*args, **kwargs)
                check()
                for tensor, parameter, value in zip(
                    self._tensors, self._parameters, outside, strict=True
                ):
                    _pull_back(tensor, parameter, value)
            finally:
                with torch.no_grad():
                    self._write(outside)
            return loss

        return call

    @torch.no_grad()
    def end(self) -> None:
        """Leave the parameters at the members, and note the points outside."""
        outside = self._copies()
        self._write(self._reached(Constraint.retract))
        self._members = self._copies()
        is_over = self._history.is_at_rest()
        self._outside = [
            point if tensor.constraint().is_smooth() and not is_over else member
            for tensor, point, member in zip(self._tensors, outside, self._members, strict=True)
        ]
        if is_over or has_moved(self._outside, outside):
            self._history.forget()

    def _reached(self, function: Callable[[Constraint, Tensor], Tensor]) -> list[Tensor]:
        found: list[Tensor] = []
        for tensor, parameter in zip(self._tensors, self._parameters, strict=True):
            if not is_finite_point(parameter):
                raise step_too_long(tensor, tensor.steps + 1)
            found.append(function(tensor.constraint(), sharded.whole(parameter.detach())))
        return found

    def _copies(self) -> list[Tensor]:
        return [p.detach().clone() for p in self._parameters]

    def _write(self, values: Sequence[Tensor]) -> None:
        for parameter, value in zip(self._parameters, values, strict=True):
            store(parameter, value)


def _pull_back(tensor: AttachedConstraint, parameter: Tensor, outside: Tensor) -> None:
    """Replace the gradient at a member by that at the point which the member is nearest to."""
    gradient = parameter.grad
    if gradient is None:
        return
    constraint, whole = tensor.constraint(), sharded.whole(gradient)
    start = sharded.whole(outside).requires_grad_()
    with torch.enable_grad():
        found = constraint.nearby(start)
    if not found.requires_grad:
        # Some nearest members are found by iterations without a derivative. To first order in the
        # distance, that of the projection keeps what is admissible at the member.
        store(gradient, constraint.admissible(found, whole))
        return
    distance = (found - start).detach().abs().max() if start.numel() else 0
    if distance <= tolerance(start.detach(), None):
        # The map may have a kink there. The loss falls along admissible directions only.
        back = constraint.admissible(start.detach(), whole)
    else:
        (back,) = torch.autograd.grad(found, start, whole)
    store(gradient, back)
