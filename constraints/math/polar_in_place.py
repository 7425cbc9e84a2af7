"""Steps on orthogonal matrices in place: the tangent part of a gradient, and the way back.

These are `constraints.math.polar` for optimizer steps, where nothing is differentiated and each
call counts: for a small matrix, the calls take longer than the products.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from constrained.torch_internals import linalg
from constraints.math.gram import MIRRORED, gram
from constraints.math.polar import BLOCK, ROUNDING, polar_factor

#: Batches are worked through in pieces of this many entries, which stay in the cache.
_PIECE = 2**16


def make_tangent_(W: Tensor, G: Tensor) -> bool:
    """Replace G by its projection onto the tangent space at W.

    It is ``G - W (W' G + G' W) / 2``, and for a wide W ``G - (G W' + W G') W / 2``.

    Args:
        W: orthonormal columns, or rows if it is wide, shape ``(*batch, n, p)``, contiguous.
        G: the same shape. It is overwritten.

    Returns:
        Whether G was finite, and so was its norm. If not, it is as it was.
    """
    if not math.isfinite(float(linalg.vector_norm(G))):
        return False
    if W.ndim == 2:
        if W.shape[0] >= W.shape[1]:
            S = W.mT @ G
            G.addmm_(W, S + S.mT, alpha=-0.5)
        else:
            S = G @ W.mT
            G.addmm_(S + S.mT, W, alpha=-0.5)
        return True
    for w, g in _pieces(W, G):
        if W.shape[-2] >= W.shape[-1]:
            S = w.mT @ g
            g.baddbmm_(w, S + S.mT, alpha=-0.5)
        else:
            S = g @ w.mT
            g.baddbmm_(S + S.mT, w, alpha=-0.5)
    return True


def orthogonalize_(X: Tensor) -> None:
    """Replace X by its polar factor.

    Near orthogonality that is the Newton-Schulz step ``X - X (X' X - I) / 2``. An orthogonal matrix
    stays bit for bit.

    Args:
        X: shape ``(*batch, n, p)``, contiguous.
    """
    n, p = X.shape[-2:]
    if X.numel() == 0:
        return
    if max(n, p) >= 8 * BLOCK:
        # With so many rows, sums are to be split.
        X.copy_(polar_factor(X))
        return
    rounding = ROUNDING * torch.finfo(X.dtype).eps * math.sqrt(min(n, p))
    for (x,) in [(X,)] if X.ndim == 2 else _pieces(X):
        E = _own_defect(x if n >= p else x.mT)
        distance = linalg.vector_norm(E, dim=(-2, -1))
        largest = float(distance.amax() if distance.ndim else distance)
        if largest <= rounding:
            continue
        if not 0.75 * largest**2 <= rounding / 4:
            x.copy_(polar_factor(x))
            continue
        if distance.ndim:
            # An orthogonal element stays as it is, whatever else the batch contains.
            E.mul_((distance > rounding)[:, None, None])
        factors = (x, E) if n >= p else (E, x)
        if x.ndim == 2:
            x.copy_(torch.addmm(x, *factors, alpha=-0.5))
        else:
            x.copy_(torch.baddbmm(x, *factors, alpha=-0.5))


def _pieces(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """The matrices of tensors of one shape, some at a time."""
    n, p = tensors[0].shape[-2:]
    count = max(1, _PIECE // (n * p))
    batches = [t.view(-1, n, p) for t in tensors]
    starts = range(0, len(batches[0]), count)
    return [tuple(b[start : start + count] for b in batches) for start in starts]


def _own_defect(X: Tensor) -> Tensor:
    """``X' X - I``."""
    p = X.shape[-1]
    if X.ndim == 2 and p < MIRRORED:
        return torch.addmm(torch.eye(p, dtype=X.dtype, device=X.device), X.mT, X, beta=-1)
    E = gram(X)
    E.diagonal(dim1=-2, dim2=-1).sub_(1)
    return E
