r"""The affine-invariant geometry of positive definite matrices, in coordinates of Cholesky factors.

With the Cholesky factor L of a member W, a tangent vector V, a symmetric matrix, has the
coordinates $S = L^{-1} V L^{-\top}$. The inner product of two vectors is that of their coordinates,
the trace of $W^{-1} U W^{-1} V$. With the lower triangular K for which $K + K^\top = S$ the curve

$$W(t) = L(t) L(t)^\top, \qquad L(t) = L \, e^{t K},$$

starts at W with the velocity V. It stays in the set for all t, and the coordinates of its velocity
are S all along. So a vector is transported by keeping its coordinates, and inner products with it.

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


def cholesky_factor(W: Tensor) -> Tensor:
    """The lower triangular L with ``W = L L'`` and a positive diagonal."""
    return linalg.cholesky_ex(W).L


def coordinates(L: Tensor, V: Tensor) -> Tensor:
    """``L^-1 V L^-T`` for a lower triangular L and a symmetric V."""
    half = linalg.solve_triangular(L, V, upper=False)
    return symmetric_part(linalg.solve_triangular(L, half.mT, upper=False))


def vector_with(L: Tensor, S: Tensor) -> Tensor:
    """``L S L'``, the vector with the coordinates S."""
    return symmetric_part(L @ S @ L.mT)


def moved(L: Tensor, V: Tensor) -> Tensor:
    """The member W(1) of the curve that starts at ``L L'`` with the velocity V."""
    S = coordinates(L, V)
    K = S.tril(-1) + torch.diag_embed(S.diagonal(dim1=-2, dim2=-1) / 2)
    return covariance(L @ linalg.matrix_exp(K))
