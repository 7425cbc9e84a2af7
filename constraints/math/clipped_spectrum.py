"""The numbers of a matrix whose singular values are cut at a bound."""

from __future__ import annotations

import torch
from torch import Tensor

from constraints.math import polar
from constraints.math.svd import svd

#: A singular value that exceeds the bound by so many units of the machine epsilon equals it.
ROUNDING = 4.0


def clipped_and_vectors(
    X: Tensor, bound: float, needed: bool = False
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The clipped matrix of a tall X, and its right singular vectors if they had to be found.

    Args:
        X: shape ``(*batch, n, p)``, ``n >= p``.
        bound: the largest singular value.
        needed: whether the vectors are wanted in any case.

    Returns:
        The matrix W; in ascending order, the squares of its singular values in units of the
        bound, less 1, of shape ``(*batch, p)``, and before they are cut; the vectors, of shape
        ``(*batch, p, p)``. These two are None where a decomposition was not needed.
    """
    unchanged = X.clone(memory_format=torch.contiguous_format)
    if X.numel() == 0 or (not needed and bool(certainly_inside(X, bound).all())):
        return unchanged, None, None
    # In units of the bound, the eigenvalues of E are the squares of the singular values, less 1.
    Y = X / bound
    E = polar.defect(Y, Y)
    finite = torch.isfinite(E).all(-1, keepdim=True).all(-2, keepdim=True)
    excess, V = torch.linalg.eigh(torch.where(finite, E, 0))
    rounding = ROUNDING * torch.finfo(X.dtype).eps
    inside = finite & (excess[..., -1:, None] <= 2 * rounding)
    if bool(inside.all()):
        return unchanged, excess, V
    if not bool(finite.all()) or float(excess.amax()) > 0.5:
        # Far outside, the Gram matrix holds too few digits of the singular values near the bound.
        Y = _far_clip(X, bound)
        excess, V = torch.linalg.eigh(polar.defect(Y, Y).nan_to_num())
    # Only these are cut.
    cut = V[..., -int((excess > 0).sum(-1).amax()) :]
    over = excess[..., -cut.shape[-1] :].clamp(min=0)
    lost = 1 - torch.rsqrt(1 + over)
    W = bound * (Y - ((Y @ cut) * lost.unsqueeze(-2)) @ cut.mT)
    # The eigenvectors are orthonormal up to some ten roundings, which now are on top of the bound.
    for _ in range(16):
        outside = ~(inside | certainly_inside(W, bound))
        if not bool(outside.any()):
            break
        W = torch.where(outside, (1 - rounding) * W, W)
    return torch.where(inside, X, W).contiguous(), excess, V


def certainly_inside(X: Tensor, bound: float) -> Tensor:
    """Where no singular value exceeds the bound: a sufficient condition, cheaper than eigenvalues.

    ``(1 + slack) I - X' X / bound^2`` has a Cholesky decomposition.
    """
    Y = X / bound
    E = polar.defect(Y, Y).neg_()
    E.diagonal(dim1=-2, dim2=-1).add_(2 * ROUNDING * torch.finfo(X.dtype).eps)
    L, info = torch.linalg.cholesky_ex(E)
    # Infinity and NaN are no reason for LAPACK to stop.
    return ((info == 0) & torch.isfinite(L.diagonal(dim1=-2, dim2=-1)).all(-1))[..., None, None]


def _far_clip(X: Tensor, bound: float) -> Tensor:
    """The clipped matrix in units of the bound."""
    U, S, Vh, limit, finite = decomposed(X, bound)
    Y = (U * torch.where(S < limit, S / limit, 1).unsqueeze(-2)) @ Vh
    return torch.where(finite, Y, torch.nan)


def decomposed(X: Tensor, bound: float) -> tuple[Tensor, ...]:
    """The SVD of X / c, bound / c, and whether X is finite, where c is the largest entry of X."""
    largest = X.abs().amax(dim=(-2, -1), keepdim=True)
    finite = torch.isfinite(largest)
    U, S, Vh = svd(torch.where(finite & (largest > 0), X / largest, 0))
    return U, S, Vh, bound / largest.squeeze(-1), finite
