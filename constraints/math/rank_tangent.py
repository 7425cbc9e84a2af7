"""Tangent vectors of matrices of fixed rank, and tangent cones where the rank is lower."""

from __future__ import annotations

import torch
from torch import Tensor

from constraints.math.leading_eigenvalues import leading_eigenvalues
from constraints.math.matrix import symmetric_part
from constraints.math.svd import svd

# Derivation. A curve of matrices of rank r through W = U S V' has the derivative U A' + B V', with
# any A and B. These tangents are the V with (I - U U') V (I - V V') = 0, so the projection of G is
# G - N with the normal part N = (I - U U') G (I - V V'). A matrix W of a rank s < r is a singular
# point of the matrices of rank r or less. There the tangents are limits of differences: U A' + B V'
# plus any matrix of rank r - s in the normal space. So the projection keeps of N its best
# approximation of rank r - s.


def rank_tangent(value: Tensor, vector: Tensor, rank: int) -> Tensor:
    """The nearest tangent vectors at matrices of at most a given rank.

    At a matrix of that rank it is the orthogonal projection onto the tangent space. At one of lower
    rank it is the projection onto the tangent cone, which is not linear.

    Args:
        value: the matrices, of shape ``(*batch, m, n)``.
        vector: of the shape of ``value``.
        rank: from 1 to the smaller side.

    Reference:
        Schneider and Uschmajew, Convergence results for projected line-search methods on varieties
        of low-rank matrices via Lojasiewicz inequality (SIAM Journal on Optimization 25, 2015),
        theorem 3.2.
    """
    U, s, Vh = svd(value)
    U, s, Vh = U[..., :rank], s[..., :rank], Vh[..., :rank, :]
    nonzero = s > _rounding(s, value)
    U, Vh = U * nonzero.unsqueeze(-2), Vh * nonzero.unsqueeze(-1)
    right = vector - U @ (U.mT @ vector)
    normal = right - (right @ Vh.mT) @ Vh
    if bool(nonzero.all()):
        return vector - normal
    P, sizes, Qh = svd(normal)
    kept = torch.arange(sizes.shape[-1], device=s.device) < (~nonzero).sum(-1, keepdim=True)
    return vector - normal + (P * (sizes * kept).unsqueeze(-2)) @ Qh


def psd_rank_tangent(
    value: Tensor, vector: Tensor, rank: int, least: Tensor | None = None
) -> Tensor:
    """The nearest tangent vectors at positive semidefinite matrices of at most a given rank.

    At a matrix of lower rank it is the projection onto the tangent cone: of the normal part only
    the largest positive eigenvalues are kept, as many as the rank is lower.

    Args:
        value: the matrices, of shape ``(*batch, n, n)``.
        vector: of the shape of ``value``, not necessarily symmetric.
        rank: from 1 to n.
        least: up to which eigenvalue a matrix counts as one of lower rank, of shape
            ``(*batch, 1)``; by default the rounding error.

    Reference:
        Vandereycken, Absil and Vandewalle, Embedded geometry of the set of symmetric positive
        semidefinite matrices of fixed rank (IEEE Workshop on Statistical Signal Processing, 2009).
    """
    eigenvalues, Q = leading_eigenvalues(value, rank)
    nonzero = eigenvalues > (_rounding(eigenvalues, value) if least is None else least)
    Q = Q * nonzero.unsqueeze(-2)
    vector = symmetric_part(vector)
    across = vector - Q @ (Q.mT @ vector)
    normal = symmetric_part(across - (across @ Q) @ Q.mT)
    if bool(nonzero.all()):
        return vector - normal
    sizes, P = leading_eigenvalues(normal, rank)
    kept = torch.arange(rank, device=Q.device) < (~nonzero).sum(-1, keepdim=True)
    cone = (P * (sizes.clamp(min=0) * kept).unsqueeze(-2)) @ P.mT
    return vector - normal + symmetric_part(cone)


def _rounding(sizes: Tensor, value: Tensor) -> Tensor:
    """The rounding error of singular values or eigenvalues, of which the first is the largest."""
    return torch.finfo(value.dtype).eps * max(value.shape[-2:]) * sizes[..., :1]
