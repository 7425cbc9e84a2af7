"""Where a matrix outside of an open set of regular matrices starts training."""

from __future__ import annotations

import torch
from torch import Tensor

from constrained import Constraint
from constrained.torch_internals import linalg

#: A matrix that the projection moves by at most this share of its norm counts as nearly a member.
NEARLY = 0.1

#: At the start of any other matrix, the derivative of the map is at least this share of its typical
#: size. The negative logarithm of a likelihood, and all of its derivatives, grow without bound
#: towards the boundary: gradient steps of a usual size need a well-conditioned start.
INSIDE = 0.3


def admitted(constraint: Constraint, value: Tensor, candidate: Tensor, share: float) -> Tensor:
    """Members to start from in place of matrices outside; see `Constraint.admit`.

    A matrix that is nearly a member, such as a covariance matrix that is not quite symmetric, is
    meant to be one. It is projected and then moved inwards no farther than necessary. Any other
    matrix is assumed to be random, and is replaced by ``candidate``, moved well inside.

    Args:
        constraint: the set.
        value: shape ``(*batch, m, n)``.
        candidate: a member made of ``value`` that is as well-conditioned.
        share: as for `Constraint.inwards`.
    """
    nearest = constraint.project(value)
    moved = linalg.matrix_norm(nearest - value, keepdim=True)
    nearly = moved <= NEARLY * linalg.matrix_norm(value, keepdim=True)
    inside = constraint.inwards(candidate, max(share, INSIDE))
    return torch.where(nearly, constraint.inwards(nearest, share), inside)
