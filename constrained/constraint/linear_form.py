"""Sets that linear inequalities describe, as solvers of constrained problems take them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LinearForm:
    r"""The closure of a set as :math:`\{x : l \le x \le h,\ a \le A x \le b\}`, for one element.

    Attributes:
        low: the lower bound of each entry, minus infinity if there is none.
        high: the upper bound of each entry.
        matrix: A, of shape ``(rows, entries)``, in double precision, with linearly independent
            rows; None if the bounds alone describe the set.
        lower: a, of shape ``(rows,)``; None if there is no matrix.
        upper: b, likewise.
    """

    low: float = -torch.inf
    high: float = torch.inf
    matrix: Tensor | None = None
    lower: Tensor | None = None
    upper: Tensor | None = None


def equations(matrix: Tensor, right: Tensor, low: float = -torch.inf) -> LinearForm:
    """The form of a set of solutions of linear equations, with a lower bound of the entries.

    Args:
        matrix: of shape ``(rows, entries)``, with linearly independent rows.
        right: the right-hand sides, of shape ``(rows,)``.
        low: the lower bound.
    """
    matrix, right = matrix.double().cpu(), right.double().cpu()
    return LinearForm(low=low, matrix=matrix, lower=right, upper=right)
