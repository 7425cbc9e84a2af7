"""Curves on the Stiefel manifold: from a matrix with orthonormal columns, along a direction."""

from __future__ import annotations

import torch
from torch import Tensor

from constrained.torch_internals import linalg
from constraints.math.matrix import eye_like

# Both functions are f(A) B with the skew n x n matrix A = X B' - B X', where f(z) is e^z or
# (1 + z/2) / (1 - z/2), so that B' f(A)' f(A) B = I. A has the rank 2 p at most, and is not formed
# if n is large: with
#
#     Omega = B' X - X' B  (skew),          K = X - B B' X  (orthogonal to B),
#
# it maps the span of B and K into itself: A B = B Omega + K and A K = -B K' K. The columns of K may
# be dependent; at X = 0 all of them vanish. So K = Z R is taken from the QR decomposition
# [K; I] = [Z; R^-1] R. There R' R = K' K + I, and neither Z nor R^-1 has an entry above 1, so that
# rounding errors are not amplified, however long X is.


def cayley(B: Tensor, X: Tensor) -> Tensor:
    r"""The Cayley transform ``(I - A/2)^-1 (I + A/2) B`` with ``A = X B' - B X'``.

    It costs $O(n p^2)$.

    Args:
        B: shape ``(*batch, n, p)`` with orthonormal columns.
        X: the same shape; from X = 0 its derivative maps onto the tangent space of the Stiefel
            manifold at B.

    Reference:
        Wen and Yin, A feasible method for optimization with orthogonality constraints (2013).
    """
    identity = eye_like(B)
    X = _resolved(X)
    BX = B.mT @ X
    Omega = BX - BX.mT
    if B.shape[-2] == B.shape[-1]:
        return B @ linalg.solve(identity - Omega / 2, identity + Omega / 2)
    # W = B a + K b solves (I - A/2) W = (I + A/2) B; its parts along B and along K are
    #     a - Omega a / 2 + K' K b / 2 = I + Omega / 2,          b - a / 2 = I / 2,
    # so a = 2 b - I and b = (I - Omega / 2 + K' K / 4)^-1. With R' R = I + K' K / 4 and the skew
    # S = R'^-1 Omega R^-1, b = R^-1 (I - S / 2)^-1 R'^-1, and K b = 2 Z R b.
    Z, _, R_inverse = _bounded_basis((X - B @ BX) / 2)
    S = R_inverse.mT @ Omega @ R_inverse
    Rb = linalg.solve(identity - S / 2, R_inverse.mT)
    return B @ (2 * R_inverse @ Rb - identity) + 2 * Z @ Rb


def geodesic(B: Tensor, X: Tensor) -> Tensor:
    r"""The exponential ``exp(A) B`` with ``A = X B' - B X'``.

    It costs $O(n p^2)$.

    Args:
        B: shape ``(*batch, n, p)`` with orthonormal columns.
        X: the same shape; from X = 0 its derivative maps onto the tangent space of the Stiefel
            manifold at B.

    Reference:
        Edelman, Arias and Smith, The geometry of algorithms with orthogonality constraints (1998).
    """
    n, p = B.shape[-2:]
    X = _resolved(X)
    BX = B.mT @ X
    Omega = BX - BX.mT
    if n == p:
        return B @ linalg.matrix_exp(Omega)
    if n < 2 * p:
        XB = X @ B.mT
        return linalg.matrix_exp(XB - XB.mT) @ B
    # In the coordinates of [B, Z], A is N: A B = B Omega + Z R, and A Z = A K R^-1 = -B R' Z' Z.
    Z, R, _ = _bounded_basis(X - B @ BX)
    top = torch.cat((Omega, -R.mT @ (Z.mT @ Z)), dim=-1)
    bottom = torch.cat((R, torch.zeros_like(R)), dim=-1)
    columns = linalg.matrix_exp(torch.cat((top, bottom), dim=-2))[..., :p]
    return B @ columns[..., :p, :] + Z @ columns[..., p:, :]


def _resolved(X: Tensor) -> Tensor:
    """X, shortened to the length 1 / (4 eps) if it is longer: larger angles have no exact digit."""
    length = linalg.matrix_norm(X.detach(), keepdim=True)
    return X * (1 / (4 * torch.finfo(X.dtype).eps * length)).clamp(max=1)


def _bounded_basis(K: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Z, R and R^-1 with ``K = Z R`` and ``R' R = K' K + I``."""
    n, p = K.shape[-2:]
    Q, R = linalg.qr(torch.cat((K, eye_like(K).expand(*K.shape[:-2], p, p)), dim=-2))
    return Q[..., :n, :], R, Q[..., n:, :]
