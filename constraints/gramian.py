"""Solutions of Lyapunov equations for stable matrices."""

from __future__ import annotations

import torch
from torch import Tensor

#: Doublings, at most: more than the binary digits of a double.
DOUBLINGS = 64


def discrete_gramian(A: Tensor, Q: Tensor | None = None) -> Tensor:
    r"""The solution P of ``P - A P A' = Q``, for A with a spectral radius below 1.

    It is the sum of :math:`A^k Q A^{\top k}` over k, of which each round doubles the number of
    terms: 3 matrix products a round, and about :math:`\log_2` of the reciprocal of what the
    spectral radius lacks to 1 rounds. Nothing is subtracted: the result is at least Q.

    Args:
        A: shape ``(*batch, n, n)``.
        Q: shape ``(*batch, n, n)``, symmetric positive semidefinite; I by default.

    Returns:
        Tensor of shape ``(*batch, n, n)``.

    Reference:
        Smith, Matrix equation XA + BX = C (SIAM Journal on Applied Mathematics 16, 1968).
    """
    P = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device).expand_as(A) if Q is None else Q
    power = A
    for _ in range(DOUBLINGS):
        more = power @ P @ power.mT
        P = P + (more + more.mT) / 2
        small = more.abs().amax((-2, -1)) <= torch.finfo(A.dtype).eps * P.abs().amax((-2, -1))
        if bool(small.all()):
            break
        power = power @ power
    return P


def continuous_gramian(A: Tensor, Q: Tensor | None = None) -> Tensor:
    r"""The solution P of ``A P + P A' = -Q``, for A with eigenvalues of negative real part.

    With the Cayley transform :math:`C = (p I + A) (p I - A)^{-1}`, for any p > 0, it solves
    :math:`P - C P C^\top = 2 p \, N Q N^\top`, :math:`N = (p I - A)^{-1}`.

    Args:
        A: shape ``(*batch, n, n)``.
        Q: shape ``(*batch, n, n)``, symmetric positive semidefinite; I by default.

    Returns:
        Tensor of shape ``(*batch, n, n)``.
    """
    identity = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    # Where C has its smallest spectral radius if the eigenvalues have about the same modulus.
    p = torch.linalg.matrix_norm(A, keepdim=True) / A.shape[-1] ** 0.5
    p = torch.where(p > 0, p, 1)
    inverse = torch.linalg.inv_ex(p * identity - A)[0]
    right = inverse @ inverse.mT if Q is None else inverse @ Q @ inverse.mT
    right = p * (right + right.mT)
    return discrete_gramian(inverse @ (p * identity + A), right)


def coordinates(P: Tensor) -> Tensor:
    """The Cholesky factor of a Gramian scaled to the norm 1; lower triangular."""
    P = P / torch.linalg.matrix_norm(P, keepdim=True)
    n = P.shape[-1]
    # What is below the rounding of P is unknown: it bounds the condition number.
    return torch.linalg.cholesky_ex(
        P + n * torch.finfo(P.dtype).eps * torch.eye(n, dtype=P.dtype, device=P.device)
    )[0]


def change_back(K: Tensor, T: Tensor) -> Tensor:
    """``T K T^-1`` for a lower triangular T."""
    return torch.linalg.solve_triangular(T, T @ K, upper=False, left=False)


def change(A: Tensor, T: Tensor) -> Tensor:
    """``T^-1 A T`` for a lower triangular T."""
    return torch.linalg.solve_triangular(T, A @ T, upper=False)


def square_root(Q: Tensor, least: Tensor) -> Tensor:
    """The symmetric square root of a symmetric matrix, with eigenvalues raised to ``least``."""
    values, vectors = torch.linalg.eigh((Q + Q.mT) / 2)
    root = torch.maximum(values, least).sqrt().unsqueeze(-2)
    return vectors * root @ vectors.mT
