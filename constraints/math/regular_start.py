"""Where a matrix starts that is not even nearly a member of an open set of regular matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from constrained import Constraint

#: How far a matrix may be moved by its projection, relative to its norm, to be nearly a member.
NEARLY = 0.1


#: How large the derivative of the map is, at least, where any other matrix starts, as a share of
#: its typical size. The loss of a likelihood, and all of its derivatives, grow without bounds
#: towards the boundary: gradient steps of a usual size need a start that is well-conditioned.
INSIDE = 0.3


def admitted(constraint: Constraint, value: Tensor, candidate: Tensor, share: float) -> Tensor:
    """Members for outsiders to start from: see `Constraint.admit`.

    A matrix that is nearly a member, such as a covariance matrix that is not quite symmetric, is
    meant to be one: it goes to its projection, and from there no farther inwards than it must. Any
    other one is as good as random: it becomes ``candidate``, and goes well inside.

    Args:
        constraint: the set.
        value: shape ``(*batch, m, n)``.
        candidate: a member made of ``value`` that keeps its condition.
        share: as for `Constraint.inwards`.
    """
    nearest = constraint.project(value)
    moved = torch.linalg.matrix_norm(nearest - value, keepdim=True)
    nearly = moved <= NEARLY * torch.linalg.matrix_norm(value, keepdim=True)
    inside = constraint.inwards(candidate, max(share, INSIDE))
    return torch.where(nearly, constraint.inwards(nearest, share), inside)


def triangular_factor(A: Tensor) -> Tensor:
    """The lower triangular L with L L' = A A' and no negative number on its diagonal."""
    R = torch.linalg.qr(A.mT, mode="r").R
    diagonal = R.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)
    return torch.where(diagonal < 0, -R, R).mT
