"""Steps that search along a curve on the sets of all parameters at once, for a closure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from constrained.atomic.contents import store
from constrained.constraint.base import Constraint
from constrained.optim.line_search import Trial, line_search
from constrained.optim.riemannian import RiemannianOptimizer, Walker, expect_setting

#: A tangent vector at a point of the product of all sets: a tensor for each parameter.
Vectors = list[Tensor]

#: How many units in the last place of its dtype a loss may be wrong by.
_ROUNDING = 8

#: It stops after so many steps that change the loss by rounding, and do not halve the gradient.
_PATIENCE = 5


@dataclass
class Point:
    """A point of the product of all sets.

    Attributes:
        walkers: the parameters that move.
        values: where they are.
        gradients: their Riemannian gradients.
        loss: the loss.
    """

    walkers: Sequence[Walker]
    values: list[Tensor]
    gradients: Vectors
    loss: float

    def moved(self, vectors: Vectors, length: float) -> list[Tensor]:
        """The values that a step along tangent vectors leads to."""
        parts = zip(self.walkers, self.values, vectors, strict=True)
        return [w.constraint.move(x, length * v) for w, x, v in parts]

    def transported(self, vectors: Vectors) -> Vectors:
        """Tangent vectors at another point, nearby, as tangent vectors here."""
        parts = zip(self.walkers, vectors, self.values, strict=True)
        return [w.constraint.transport(v, x) for w, v, x in parts]


def inner(first: Vectors, second: Vectors) -> float:
    """The inner product of tangent vectors at the same point."""
    products = [u.conj() * v for u, v in zip(first, second, strict=True)]
    return float(sum(p.real.sum(dtype=torch.float64) for p in products))


class DescentOptimizer(RiemannianOptimizer):
    """Base of optimizers that choose a direction, and search for a good point along its curve.

    Class attributes:
        curvature: by which factor the slope has to fall in a line search.
    """

    curvature = 0.9

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, which differs from the others in its constraint alone."""
        for key, value in param_group.items():
            if key in self.defaults and key != "constraint" and value != self.defaults[key]:
                raise ValueError(
                    f"{type(self).__name__} searches along one curve for all groups, and {key} "
                    f"must be the same for all of them: {self.defaults[key]!r}, not {value!r}."
                )
        super().add_param_group(param_group)

    def check_group(self, group: dict[str, Any]) -> None:
        """See `RiemannianOptimizer`."""
        expect_setting("max_iter", group["max_iter"], 1, math.inf)
        expect_setting("max_eval", group["max_eval"], 1, math.inf)
        expect_setting("tolerance_grad", group["tolerance_grad"], 0, math.inf)
        super().check_group(group)

    def check_parameter(
        self, group: dict[str, Any], constraint: Constraint, parameter: Tensor
    ) -> None:
        """See `RiemannianOptimizer`."""
        if constraint.has_boundary():
            raise ValueError(
                f"{constraint!r} has a boundary, which {type(self).__name__} cannot walk along; "
                "take RiemannianSGD or RiemannianAdam, or torch.optim.LBFGS with mode='project'."
            )

    def direction(self, point: Point) -> Vectors:
        """The tangent vectors along which to search, as `remember` has left the state."""
        raise NotImplementedError

    def first_length(self, point: Point, slope: float) -> float | None:
        """The length of the curve to try first; None before anything is remembered."""
        raise NotImplementedError

    def remember(self, before: Point, direction: Vectors, trial: Trial, after: Point) -> None:
        """Note in the state what a step has shown, as tangent vectors at the new point."""
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Make up to ``max_iter`` steps, each along a curve.

        Args:
            closure: clears the gradients, computes the loss and its gradients, and returns the
                loss. It is called several times for a step.

        Returns:
            The loss at the beginning.
        """
        if closure is None:
            raise TypeError(
                f"{type(self).__name__}.step needs a closure that computes the loss and its "
                "gradients, as torch.optim.LBFGS does."
            )
        with torch.enable_grad():
            loss = closure()
        walkers = [w for _, some in self.moving() for w in some]
        trained = [p for group in self.param_groups for p in group["params"]]
        if not walkers or len(walkers) < sum(p.grad is not None for p in trained):
            # Nothing to do, or a gradient was left out: that of the whole step does not exist.
            return loss
        start = torch.as_tensor(loss).item()
        if not math.isfinite(start):
            raise ValueError(
                f"The loss is {start} at the beginning of a step; nothing has been changed."
            )
        group, spent = self.param_groups[0], 1
        rounding = _ROUNDING * _eps(loss, walkers)
        point = _arrived(walkers, [w.value.clone() for w in walkers], start)
        if not all(self.state[w.parameter] for w in walkers):
            self._forget()
        least, idle = math.inf, 0
        for _ in range(int(group["max_iter"])):
            most = max((float(g.abs().max()) for g in point.gradients if g.numel()), default=0.0)
            if most <= float(group["tolerance_grad"]) or spent >= int(group["max_eval"]):
                break
            if idle == _PATIENCE:
                break
            direction = self.direction(point)
            slope = inner(point.gradients, direction)
            if not slope < 0:
                self._forget()
                direction = [-g for g in point.gradients]
                slope = inner(point.gradients, direction)
            if not slope < 0:
                break
            first = self.first_length(point, slope)
            first = min(1, (-slope) ** -0.5) if first is None else first
            evaluate = _Curve(closure, point, direction)
            try:
                found = line_search(
                    evaluate,
                    Trial(0.0, point.loss, slope),
                    first * float(group["lr"]),
                    curvature=self.curvature,
                    rounding=rounding * abs(point.loss),
                    max_evaluations=int(group["max_eval"]) - spent,
                )
            except BaseException:
                _write(walkers, point.values)
                raise
            spent += evaluate.count
            if found is None:
                _write(walkers, point.values)
                if not self.state[walkers[0].parameter]:
                    break
                self._forget()
                continue
            after: Point = found.point
            _write(walkers, after.values)
            self.remember(point, direction, found, after)
            is_idle = point.loss - after.loss <= rounding * abs(point.loss) and most > least / 2
            idle, least = idle + 1 if is_idle else 0, min(least, most)
            point = after
        for walker in walkers:
            walker.note_step()
        return loss

    def _forget(self) -> None:
        self.state.clear()


class _Curve:
    """Evaluates the loss along the curve of tangent vectors, and counts how often."""

    def __init__(self, closure: Callable[[], Any], point: Point, direction: Vectors) -> None:
        self._closure, self._point, self._direction = closure, point, direction
        self.count = 0

    def __call__(self, length: float) -> Trial:
        self.count += 1
        point = self._point
        values = point.moved(self._direction, length)
        if not all(bool(torch.isfinite(value).all()) for value in values):
            return Trial(length, math.inf, math.inf)
        _write(point.walkers, values)
        with torch.enable_grad():
            loss = torch.as_tensor(self._closure()).item()
        gradients = [w.parameter.grad for w in point.walkers]
        if not all(g is not None and bool(torch.isfinite(g).all()) for g in gradients):
            return Trial(length, math.inf, math.inf)
        new = _arrived(point.walkers, values, loss)
        slope = inner(new.gradients, new.transported(self._direction))
        return Trial(length, loss, slope, new)


def _arrived(walkers: Sequence[Walker], values: list[Tensor], loss: float) -> Point:
    gradients = [
        w.constraint.riemannian_gradient(x, w.gradient())
        for w, x in zip(walkers, values, strict=True)
    ]
    return Point(walkers, values, gradients, loss)


def _write(walkers: Sequence[Walker], values: Sequence[Tensor]) -> None:
    for walker, value in zip(walkers, values, strict=True):
        store(walker.parameter, value)


def _eps(loss: Any, walkers: Sequence[Walker]) -> float:
    """The unit in the last place of a loss that is near 1."""
    tensors = [loss] if isinstance(loss, Tensor) else []
    return max(torch.finfo(t.dtype).eps for t in [*tensors, *(w.parameter for w in walkers)])
