"""The singular values of constrained matrices: the largest, the smallest, condition and rank."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from constrained.constraint.base import Constraint
from constrained.constraint.precision import raise_precision
from constrained.constraint.view import View
from constrained.torch_internals import linalg
from constrained.torch_internals.tensors import has_values

#: Matrices whose smaller side is longer have no spectrum unless it is asked for: it takes seconds.
LONGEST_SIDE = 1024


class Spectrum(NamedTuple):
    """What is told of the singular values of a tensor's elements, all of them matrices.

    Attributes:
        largest: the largest singular value of all elements.
        smallest: the smallest one.
        condition: the largest ratio, within one element, of its largest singular value and its
            smallest one that is not zero up to rounding.
        rank: the smallest number, within one element, of those that are not zero up to rounding.
    """

    largest: float
    smallest: float
    condition: float
    rank: int


def seen(constraint: Constraint, value: Tensor) -> tuple[Constraint, Tensor]:
    """The elements of a tensor as its constraint sees them, and the constraint on these."""
    while isinstance(constraint, View):
        constraint, value = constraint.constraint, constraint.rearranged(value)
    return constraint, value


def singular_values(value: Tensor) -> Tensor:
    """The singular values of finite matrices, in descending order, in at least single precision."""
    value = raise_precision(value.detach())
    try:
        return linalg.svdvals(value)
    except linalg.LinAlgError:
        # LAPACK did not converge; on the transpose in double precision it does.
        wide = torch.complex128 if value.is_complex() else torch.float64
        return linalg.svdvals(value.mH.to(wide)).to(value.real.dtype)


def _rounding(s: Tensor, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """What rounding may have made of singular values that are zero.

    Rounding errors of the algorithm are in proportion to the largest singular value. Those of the
    entries, which matter in half precision, are independent of each other, and the norm of a random
    matrix is in proportion to the size of its entries times the roots of its sides.
    """
    of_algorithm = max(rows, columns) * torch.finfo(s.dtype).eps * s[:, :1]
    size = linalg.vector_norm(s, dim=-1, keepdim=True) / math.sqrt(rows * columns)
    of_entries = torch.finfo(dtype).eps * size * (math.sqrt(rows) + math.sqrt(columns))
    return torch.maximum(of_algorithm, of_entries)


def spectrum_of(constraint: Constraint, value: Tensor, *, always: bool = False) -> Spectrum | None:
    """The spectrum of a constrained tensor.

    Args:
        constraint: its constraint.
        value: its value.
        always: also of matrices larger than `LONGEST_SIDE`.

    Returns:
        None if the elements are no matrices, or too large, or there are no numbers. All NaN, and
        the rank 0, if an entry is NaN or infinite.
    """
    constraint, value = seen(constraint, value)
    if constraint.event_dim != 2 or not has_values(value) or not value.numel():
        return None
    rows, columns = value.shape[-2:]
    if not always and min(rows, columns) > LONGEST_SIDE:
        return None
    if not bool(torch.isfinite(value).all()):
        return Spectrum(math.nan, math.nan, math.nan, 0)
    s = singular_values(value).reshape(-1, min(rows, columns))
    regular = s > _rounding(s, rows, columns, value.dtype)
    rank = regular.sum(-1)
    last = s.gather(-1, (rank - 1).clamp(min=0).unsqueeze(-1)).squeeze(-1)
    condition = torch.where(rank > 0, s[:, 0] / last, torch.nan)
    return Spectrum(
        float(s[:, 0].max()), float(s[:, -1].min()), float(condition.max()), int(rank.min())
    )
