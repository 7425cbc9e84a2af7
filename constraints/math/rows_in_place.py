"""Vectors along the last dimension, changed in place with few passes over memory.

A step of SGD of a linear layer reads and writes its weight about seven times, so each further pass
counts. Where several passes are needed, they are made over one block of rows after another, each of
which stays in the cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from constrained.torch_internals import linalg
from constraints.math.unit_vectors import ROUNDING

#: The entries of a block. Blocks of single precision, and a buffer, fit into a cache of 2 MB. Where
#: more is done to each, larger ones are faster: the calls count.
_BLOCK, _LARGER_BLOCK = 2**16, 2**17

#: Positive entries are counted again unless a round leaves less than this share of the excess.
_QUICK = 0.05

#: Sums over a row above which a threshold is found by sorting, which loses no digits.
_LARGE = 8.0


def has_moderate_squares(least: float, largest: float, dtype: torch.dtype) -> bool:
    """Whether the squares of lengths between two numbers neither overflow nor lose digits."""
    finfo = torch.finfo(dtype)
    return finfo.tiny**0.5 / finfo.eps < least and largest < finfo.eps * finfo.max**0.5


def shorten_(value: Tensor, bound: float) -> bool:
    """Scale the vectors that are longer than a bound back to it; others stay bit for bit.

    Args:
        value: contiguous, shape ``(*batch, n)``, not empty.
        bound: greater than zero.

    Returns:
        Whether it could. If not, the squares of some entries are too large or too small, and
        nothing has changed.
    """
    length = linalg.vector_norm(value, dim=-1, keepdim=True)
    # Inside by a rounding, so that the length of the result does not exceed the bound.
    most = bound * (1 - 2 * torch.finfo(value.dtype).eps)
    longest = float(length.amax())
    if not has_moderate_squares(most, max(longest, most), value.dtype):
        return False
    if longest > most:
        value.mul_((most / length).clamp_(max=1))
    return True


def normalize_(value: Tensor, radius: float) -> bool:
    """Scale vectors to a length; one that has it up to rounding stays bit for bit.

    Args:
        value: contiguous, shape ``(*batch, n)``, not empty.
        radius: the length.

    Returns:
        Whether it could, as for `shorten_`.
    """
    length = linalg.vector_norm(value, dim=-1, keepdim=True)
    least, longest = map(float, length.aminmax())
    margin = ROUNDING * torch.finfo(value.dtype).eps
    if radius * (1 - margin) <= least and longest <= radius * (1 + margin):
        return True
    if not has_moderate_squares(least, longest, value.dtype):
        return False
    factor = radius / length
    value.mul_(torch.where((factor - 1).abs() <= margin, 1, factor))
    return True


def make_tangent_(value: Tensor, gradient: Tensor, radius: float) -> bool:
    """Make gradients orthogonal to vectors of a given length.

    Args:
        value: contiguous, shape ``(*batch, n)``, not empty.
        gradient: the same. It is overwritten.
        radius: the length.

    Returns:
        Whether the gradient was finite, and so were the products of its entries with those of the
        vectors. If not, it is as it was.
    """
    buffer = _buffer(value)
    along = value.new_empty(*value.shape[:-1], 1)
    sums, start = along.view(-1, 1), 0
    for rows, gradients in _blocks(value, gradient):
        products = torch.mul(gradients, rows, out=buffer[: len(rows)])
        torch.sum(products, -1, keepdim=True, out=sums[start : start + len(rows)])
        start += len(rows)
    # A product is finite only if its factors are, and a sum only if its terms are.
    if not math.isfinite(float(along.sum())):
        return False
    gradient.addcmul_(value, along, value=-1 / radius**2)
    return True


def onto_simplex_(value: Tensor) -> bool:
    """Project vectors onto the probability simplex.

    The nearest vector is ``max(x - t, 0)`` with the t for which its sum is 1. That sum is a convex
    function of t, so Newton's method, which starts below the root, stays below it: entries that it
    has set to zero are zero in the end, and each round can overwrite the vector.

    Args:
        value: contiguous, shape ``(*batch, n)``, not empty.

    Returns:
        Whether it could. If not, entries are too large for it. The vectors may have changed, but
        not their projections.
    """
    n = value.shape[-1]
    rounding = (4 + n**0.5) * torch.finfo(value.dtype).eps
    buffer = _buffer(value, _LARGER_BLOCK)
    for (rows,) in _blocks(value, entries=_LARGER_BLOCK):
        total, count = rows.sum(-1, keepdim=True), n
        if not math.isfinite(float(total.sum())):
            return False
        shift, before = (total - 1).div_(n), math.inf
        while True:
            rows.sub_(shift).relu_()
            total = rows.sum(-1, keepdim=True)
            largest = float(total.amax())
            if not largest < _LARGE:
                return False
            if largest <= 1 + rounding:
                break
            # Counts only fall: a shift by an old one is too short, but not beyond the root.
            if (largest - 1) > _QUICK * before:
                count = torch.sign(rows, out=buffer[: len(rows)]).sum(-1, keepdim=True)
            before = largest - 1
            shift = ((total - 1) / count).clamp_(min=0)
        # A product takes half as long as a quotient.
        rows.mul_(total.reciprocal_())
    return True


def _blocks(*tensors: Tensor, entries: int = _BLOCK) -> Iterator[tuple[Tensor, ...]]:
    """The rows of tensors of one shape in blocks."""
    n = tensors[0].shape[-1]
    count = max(1, entries // n)
    matrices = [t.view(-1, n) for t in tensors]
    for start in range(0, len(matrices[0]), count):
        yield tuple(m[start : start + count] for m in matrices)


def _buffer(value: Tensor, entries: int = _BLOCK) -> Tensor:
    """Memory for one block, for all of them: that from the system costs more than to be read."""
    n = value.shape[-1]
    return value.new_empty(min(value.numel() // n, max(1, entries // n)), n)
