r"""The affine-invariant geometry of positive definite matrices, in coordinates of Cholesky factors.

With the Cholesky factor L of a member W, a tangent vector V, a symmetric matrix, has the
coordinates $S = L^{-1} V L^{-\top}$. The inner product of two vectors is that of their coordinates,
the trace of $W^{-1} U W^{-1} V$. With the lower triangular K for which $K + K^\top = S$ the curve

$$W(t) = L(t) L(t)^\top, \qquad L(t) = L \, e^{t K},$$

starts at W with the velocity V. It stays in the set for all t, and the coordinates of its velocity
are S all along. So a vector is transported by keeping its coordinates, which keeps inner products.

Reference:
    Bhatia, Positive definite matrices (2007), chapter 6, for the metric; Lin, Riemannian geometry
    of symmetric positive definite matrices via Cholesky decomposition (SIAM Journal on Matrix
    Analysis and Applications 40, 2019), for the group of Cholesky factors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from constrained.torch_internals import linalg
from constraints.math.covariance import covariance
from constraints.math.matrix import symmetric_part


def gradient_coordinates(W: Tensor, G: Tensor) -> Tensor:
    """The coordinates of the gradient ``W G W``: ``L' G L`` for the symmetric part of G.

    Args:
        W: shape ``(*batch, n, n)``.
        G: partial derivatives of a function at W, of the same shape.
    """
    L = linalg.cholesky_ex(W).L
    return symmetric_part(L.mT @ symmetric_part(G) @ L)


def moved(W: Tensor, S: Tensor) -> Tensor:
    """The member W(1) of the curve from W whose velocity has the coordinates S.

    Args:
        W: shape ``(*batch, n, n)``.
        S: symmetric, of the same shape.
    """
    L = linalg.cholesky_ex(W).L
    K = S.tril(-1) + torch.diag_embed(S.diagonal(dim1=-2, dim2=-1) / 2)
    return covariance(L @ linalg.matrix_exp(K))
