"""The largest singular value of a matrix, with derivatives that no equal ones spoil."""

from __future__ import annotations

import torch
from torch import Tensor

# Derivation. The largest eigenvalue of M = A A' or A' A is the Rayleigh quotient of its vector v:
#
#     mu = v' M v / v' v.
#
# The quotient is stationary at v: an error of the order e of the vector is one of the order e^2 of
# mu. Let v be the vector for M_0, the number that M is, and R the inverse of mu I - M_0 on what is
# orthogonal to v. To first order in M - M_0 the vector for M is
#
#     v + R (M - M_0) v.
#
# Its quotient agrees with mu to third order, so that automatic differentiation of it gives the
# first three derivatives of mu, v and R being numbers. No difference occurs but those from mu.


def largest_singular_value(A: Tensor) -> Tensor:
    """The spectral norm of each matrix, with the right derivatives up to the third.

    Where the largest singular value is not alone, to half of the digits, the first derivative is a
    subgradient, and that of a zero matrix is zero. All derivatives are finite.

    Args:
        A: shape ``(*batch, n, p)``, real or complex, of entries whose squares the dtype can hold.

    Returns:
        Tensor of shape ``batch``.
    """
    M = _gram(A)
    M_0 = M.detach()
    mu, V = torch.linalg.eigh(M_0)
    v = V[..., -1:]
    below = mu[..., -1:] - mu
    distinct = below > torch.finfo(A.dtype).eps ** 0.5 * mu[..., -1:]
    R = torch.where(distinct, 1 / torch.where(distinct, below, 1), 0)
    v = v + V @ (R.unsqueeze(-1) * (V.mH @ ((M - M_0) @ v)))
    quotient = ((v.mH @ M @ v) / (v.mH @ v)).squeeze((-2, -1))
    quotient = quotient.real if A.is_complex() else quotient
    zero = mu[..., -1] <= 0
    return torch.where(zero, 0, torch.where(zero, 1, quotient).sqrt())


def _gram(A: Tensor) -> Tensor:
    """``A A'`` or ``A' A``, whichever is smaller: its eigenvalues are the squares of A's values."""
    return A @ A.mH if A.shape[-2] <= A.shape[-1] else A.mH @ A
