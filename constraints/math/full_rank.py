"""Products of thin factors whose rank does not fall."""

from __future__ import annotations

import torch
from torch import Tensor

from constraints.math.polar import polar
from constraints.math.thin_product import thin_product


def full_rank_product(A: Tensor, B: Tensor) -> Tensor:
    """``A B' + c P Q'`` with the polar factors P and Q of A and B, and c = `share` |A| |B|.

    If A = U S^(1/2) and B = V S^(1/2) this is U (S + c) V': every singular value is raised by c, a
    rounding term, so that the product has its rank in floating-point arithmetic too. Where A or B
    has not full rank, P or Q is one of several, and a step across jumps by 2 c.

    Args:
        A: shape ``(*batch, m, r)``.
        B: shape ``(*batch, n, r)``.

    Returns:
        Tensor of shape ``(*batch, m, n)``.
    """
    c = share(A, B) * _size(A) * _size(B)
    # A smaller one would be so near to underflow that digits are lost.
    finfo = torch.finfo(A.dtype)
    c = c + (c.clamp(min=finfo.tiny / finfo.eps) - c).detach()
    P, Q = polar(A), polar(B)
    return thin_product(A, B, P, Q) + (c * P) @ Q.mT


def factors(U: Tensor, values: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
    """Balanced A and B with ``full_rank_product(A, B) == U diag(values) V'``.

    Args:
        U: orthonormal columns, shape ``(*batch, m, r)``.
        values: in descending order, shape ``(*batch, r)``. What is no more than c is taken for c
            and a rounding.
        V: orthonormal columns, shape ``(*batch, n, r)``.
    """
    part = share(U, V)
    total = values.sum(-1, keepdim=True) / (1 + values.shape[-1] * part)
    rest = torch.maximum(values - part * total, torch.finfo(values.dtype).eps * total)
    root = rest.sqrt().unsqueeze(-2)
    return (U * root).contiguous(), (V * root).contiguous()


def least(values: Tensor, like: Tensor) -> Tensor:
    """How large the smallest singular value of a matrix must be, from its leading ones."""
    finfo = torch.finfo(values.dtype)
    total = values.sum(-1, keepdim=True)
    return 2 * share(like, like) * torch.where(total > finfo.tiny / finfo.eps, total, 1)


def raised_by(values: Tensor, like: Tensor, portion: float) -> Tensor:
    """The leading singular values of matrices, the small ones raised.

    The derivative of a product of balanced factors has the size of their singular values, which are
    the roots of those of the product. One that is raised is ``portion`` of the root of the mean, or
    of 1 if that is more.
    """
    lowest = max(portion**2, share(like, like)) * values.mean(-1, keepdim=True).clamp(min=1)
    return torch.where(values < lowest, 2 * lowest, values)


def share(A: Tensor, B: Tensor) -> float:
    """2 n eps, from where on a singular value is more than rounding beside the largest."""
    return 2 * max(*A.shape[-2:], *B.shape[-2:]) * torch.finfo(A.dtype).eps


def _size(A: Tensor) -> Tensor:
    square = A.square().sum((-2, -1), keepdim=True)
    return square.clamp(min=torch.finfo(A.dtype).tiny).sqrt()
