"""What an optimizer remembers of earlier steps is made to fit where the tensor is now."""

from __future__ import annotations

from torch import Tensor
from torch.optim import Optimizer

from constrained.atomic import sharded
from constrained.atomic.contents import store
from constrained.constraint.base import Constraint
from constrained.training.optimizer_metric import first_moments, points_of


def transport(
    optimizer: Optimizer, parameter: Tensor, constraint: Constraint, rows: Tensor | None
) -> None:
    """Make what the next step will continue admissible at the new point.

    A moment loses what points out of the set there. In a set with a boundary, one that was divided
    by the scale of the metric already is multiplied by it before, and divided afterwards: only a
    gradient vanishes at an optimum where the metric's projection comes to rest.

    Args:
        optimizer: the optimizer.
        parameter: one of its parameters, back in its set.
        constraint: the constraint of the parameter.
        rows: the rows that have moved, or None for all.
    """
    if not optimizer.state.get(parameter):
        return
    value = sharded.whole(parameter)
    for moment, scale in first_moments(optimizer, parameter):
        if rows is not None:
            moment[rows] = constraint.admissible(value[rows], moment[rows])
            continue
        # After ``model.to(dtype)`` the moments are still of the dtype of before.
        vector = sharded.whole(moment).to(value.dtype)
        if scale is None or constraint.is_smooth():
            store(moment, constraint.admissible(value, vector))
        else:
            scale = sharded.whole(scale)
            store(moment, constraint.admissible(value, vector * scale) / scale)
    for point in points_of(optimizer, parameter):
        store(point, constraint.retract(sharded.whole(point)))
