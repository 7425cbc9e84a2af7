"""Sets that linear inequalities describe, as solvers of constrained problems take them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LinearForm:
    r"""The closure of a set as :math:`\{x : l \le x \le h,\ a \le A x \le b\}`, for one element.

    Or as the image of such a set of coordinates z under an affine map, :math:`x = M z + c`. So a
    ball in the 1-norm is the image of the non-negative numbers with a bounded sum, and not written
    down by its :math:`2^n` inequalities.

    Attributes:
        low: the lower bounds of the entries, or the one of all; minus infinity if there is none.
        high: the upper bounds.
        matrix: A, of shape ``(rows, entries)``, in double precision, with linearly independent
            rows; None if the bounds alone describe the set.
        lower: a, of shape ``(rows,)``; None if there is no matrix.
        upper: b, likewise.
        image: the map from coordinates; None if the entries themselves are bounded.
    """

    low: float | Tensor = -torch.inf
    high: float | Tensor = torch.inf
    matrix: Tensor | None = None
    lower: Tensor | None = None
    upper: Tensor | None = None
    image: Image | None = None


@dataclass(frozen=True)
class Image:
    """An affine map from coordinates to the entries of an element.

    Attributes:
        matrix: M, of shape ``(entries, coordinates)``, in double precision.
        offset: c, of shape ``(entries,)``.
        coordinates: gives coordinates of members, ``(*batch, entries)``, within their bounds.
    """

    matrix: Tensor
    offset: Tensor
    coordinates: Callable[[Tensor], Tensor]

    def __call__(self, coordinates: Tensor) -> Tensor:
        """The entries, of shape ``(*batch, entries)``, of coordinates."""
        matrix, offset = (t.to(coordinates) for t in (self.matrix, self.offset))
        return coordinates @ matrix.mT + offset


def equations(matrix: Tensor, right: Tensor, low: float = -torch.inf) -> LinearForm:
    """The form of a set of solutions of linear equations, with a lower bound of the entries.

    Args:
        matrix: of shape ``(rows, entries)``, with linearly independent rows.
        right: the right-hand sides, of shape ``(rows,)``.
        low: the lower bound.
    """
    if not len(matrix):
        return LinearForm(low=low)
    matrix, right = matrix.double().cpu(), right.double().cpu()
    return LinearForm(low=low, matrix=matrix, lower=right, upper=right)
