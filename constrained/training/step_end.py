"""How an optimizer step of a projected tensor ends: it is brought back, and its moments follow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor
from torch.optim import Optimizer

from constrained.attached.attached_constraint import AttachedConstraint
from constrained.constraint.base import Constraint
from constrained.training.moment_transport import moments_of, transported
from constrained.training.optimizer_metric import metric_of
from constrained.training.tasks import Task


class StepEnd(NamedTuple):
    """The function of the tasks that end a step; see `Task`.

    It is given the tensor, if ``in_metric`` the scale of the metric and the tensor before the step,
    each moment, followed by its scale if it has one, and the points that the optimizer keeps.

    Attributes:
        is_back: whether the tensor has been brought back already.
        in_metric: whether it is brought back in the metric of the step that it made.
        scaled: for each moment whether it has a scale.
    """

    is_back: bool
    in_metric: bool
    scaled: tuple[bool, ...]

    def __call__(self, constraint: Constraint, value: Tensor, *others: Tensor) -> list[Tensor]:
        """The tensor, unless it is back already, the moments and the points."""
        rest = list(others)
        if self.in_metric:
            value = _brought_back(constraint, value, rest.pop(0), rest.pop(0))
        elif not self.is_back:
            value = constraint.retract(value)
        found = [] if self.is_back else [value]
        for has_scale in self.scaled:
            moment = rest.pop(0)
            scale = rest.pop(0) if has_scale else None
            found.append(transported(constraint, value, moment, scale))
        return found + [constraint.retract(point) for point in rest]


def end_of_step(
    optimizer: Optimizer,
    tensor: AttachedConstraint,
    parameter: Tensor,
    before: Tensor | None,
    *,
    is_back: bool,
    is_outer: bool,
) -> Task | None:
    """The task that ends a step.

    Args:
        optimizer: the optimizer.
        tensor: what is known of the tensor.
        parameter: its parameter, after the step.
        before: the same before the step, if it is brought back in the metric of the step.
        is_back: whether it has been brought back already.
        is_outer: whether the optimizer leaves the steps, and so the moments, to others.

    Returns:
        None if there is nothing to do.
    """
    remembers = not is_outer and bool(optimizer.state.get(parameter))
    if is_back and not remembers:
        return None
    given, written = [parameter], [] if is_back else [parameter]
    scale = None if before is None or is_back else metric_of(optimizer, parameter)
    if before is not None and scale is not None:
        given += [scale, before]
    moments, scales, points = moments_of(optimizer, parameter) if remembers else ([], [], [])
    for moment, divided in zip(moments, scales, strict=True):
        given += [moment] if divided is None else [moment, divided]
    given, written = given + points, written + moments + points
    end = StepEnd(is_back, scale is not None, tuple(each is not None for each in scales))
    return Task.of(tensor, end, given, written) if written else None


def admissible(constraint: Constraint, value: Tensor, gradient: Tensor) -> Sequence[Tensor]:
    """The function of the tasks before a step: makes a gradient admissible."""
    return [constraint.admissible(value, gradient)]


def _brought_back(constraint: Constraint, value: Tensor, scale: Tensor, before: Tensor) -> Tensor:
    """Bring a tensor back into a set with a boundary, in the metric of the step that it made."""
    found = constraint.project_scaled(value, scale)
    if found is not None:
        return found
    dims = tuple(range(-(constraint.event_dim or value.ndim), 0))
    # The step that one scale for the whole element would have made.
    value = before + (value - before) * (scale / scale.square().mean(dims, True).sqrt())
    return constraint.retract(value)
