"""Products of thin factors that keep their rank in floating-point arithmetic."""

from __future__ import annotations

import torch
from torch import Tensor

from constraints.math.polar import polar
from constraints.math.thin_product import thin_product


def full_rank_product(A: Tensor, B: Tensor) -> Tensor:
    """``A B' + c P Q'`` with the polar factors P and Q of A and B, and c = `share` |A| |B|.

    If A = U S^(1/2) and B = V S^(1/2) this is U (S + c) V': every singular value is raised by c,
    which is of the size of rounding, so that the computed product has full rank too. Where A or B
    does not have full rank, P or Q is not unique, and the value jumps by 2 c.

    Args:
        A: shape ``(*batch, m, r)``.
        B: shape ``(*batch, n, r)``.

    Returns:
        Tensor of shape ``(*batch, m, n)``.
    """
    c = share(A, B) * _size(A) * _size(B)
    # A smaller c would be so close to underflow that digits are lost.
    finfo = torch.finfo(A.dtype)
    c = c + (c.clamp(min=finfo.tiny / finfo.eps) - c).detach()
    P, Q = polar(A), polar(B)
    return thin_product(A, B, P, Q) + (c * P) @ Q.mT


def factors(U: Tensor, values: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
    """Balanced A and B with ``full_rank_product(A, B) == U diag(values) V'``.

    Args:
        U: orthonormal columns, shape ``(*batch, m, r)``.
        values: in descending order, shape ``(*batch, r)``. A value of at most c is replaced by one
            that exceeds c by rounding.
        V: orthonormal columns, shape ``(*batch, n, r)``.
    """
    part = share(U, V)
    total = values.sum(-1, keepdim=True) / (1 + values.shape[-1] * part)
    rest = torch.maximum(values - part * total, torch.finfo(values.dtype).eps * total)
    root = rest.sqrt().unsqueeze(-2)
    return (U * root).contiguous(), (V * root).contiguous()


def least(values: Tensor, like: Tensor) -> Tensor:
    """The least admissible singular value of a matrix, from its leading singular values."""
    finfo = torch.finfo(values.dtype)
    total = values.sum(-1, keepdim=True)
    return 2 * share(like, like) * torch.where(total > finfo.tiny / finfo.eps, total, 1)


def raised_by(values: Tensor, like: Tensor, portion: float) -> Tensor:
    """The leading singular values of matrices, with small ones raised.

    The derivative of a product of balanced factors is proportional to the singular values of the
    factors, which are the roots of those of the product. They are raised such that those of the
    factors are at least ``portion`` of the root of the mean, or of 1 if that is more.
    """
    lowest = max(portion**2, share(like, like)) * values.mean(-1, keepdim=True).clamp(min=1)
    return torch.where(values < lowest, 2 * lowest, values)


def share(A: Tensor, B: Tensor) -> float:
    """2 n eps. A singular value smaller than this share of the largest one may be rounding."""
    return 2 * max(*A.shape[-2:], *B.shape[-2:]) * torch.finfo(A.dtype).eps


def _size(A: Tensor) -> Tensor:
    square = A.square().sum((-2, -1), keepdim=True)
    return square.clamp(min=torch.finfo(A.dtype).tiny).sqrt()
