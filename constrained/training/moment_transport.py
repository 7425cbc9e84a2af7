"""What an optimizer remembers of earlier steps is made to fit where the tensor is now.

A moment loses what points out of the set at the new point. In a set with a boundary, one that was
divided by the scale of the metric already is multiplied by it before, and divided afterwards: only
a gradient vanishes at an optimum where the metric's projection comes to rest.
"""

from __future__ import annotations

from torch import Tensor
from torch.optim import Optimizer

from constrained.constraint.base import Constraint
from constrained.training.optimizer_metric import first_moments, points_of


def moments_of(
    optimizer: Optimizer, parameter: Tensor
) -> tuple[list[Tensor], list[Tensor | None], list[Tensor]]:
    """What an optimizer remembers of a parameter.

    Returns:
        The moments, by what each has been divided already, and the points that it keeps.
    """
    found = list(first_moments(optimizer, parameter))
    points = points_of(optimizer, parameter)
    return [m.value for m in found], [m.scale for m in found], points


def transported(
    constraint: Constraint, value: Tensor, moment: Tensor, scale: Tensor | None
) -> Tensor:
    """A moment made admissible at a member.

    Args:
        constraint: the constraint.
        value: the member.
        moment: of the shape of the member.
        scale: by what each entry of the moment has been divided already; None if by nothing.
    """
    # After ``model.to(dtype)`` the moments are still of the dtype of before.
    moment = moment.to(value.dtype)
    if scale is None or constraint.is_smooth():
        return constraint.admissible(value, moment)
    return constraint.admissible(value, moment * scale) / scale


def transport_rows(
    optimizer: Optimizer, parameter: Tensor, constraint: Constraint, rows: Tensor
) -> None:
    """Make the moments of some rows admissible, which alone have moved.

    Args:
        optimizer: the optimizer.
        parameter: one of its parameters, back in its set.
        constraint: the constraint of the parameter.
        rows: the rows.
    """
    moments, _, points = moments_of(optimizer, parameter)
    for moment in moments:
        moment[rows] = constraint.admissible(parameter[rows], moment[rows])
    for point in points:
        point.copy_(constraint.retract(point))
