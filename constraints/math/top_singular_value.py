"""The largest singular value of a matrix, with finite derivatives even if others equal it."""

from __future__ import annotations

import torch
from torch import Tensor

from constrained.torch_internals import linalg

# Derivation. The largest eigenvalue of M = A A' or A' A is the Rayleigh quotient of its vector v:
#
#     mu = v' M v / v' v.
#
# The quotient is stationary at v: an error of order e in the vector is one of order e^2 in mu. Let
# M_0 be the value of M, held constant, v its vector, and R the inverse of mu I - M_0 on the
# orthogonal complement of v. To first order in M - M_0 the vector of M is
#
#     v + R (M - M_0) v.
#
# Its quotient agrees with mu to third order, so that automatic differentiation of it, with v and R
# held constant, gives the first three derivatives of mu. It contains only differences between mu
# and other eigenvalues.


def largest_singular_value(A: Tensor) -> Tensor:
    """The spectral norm of each matrix, with exact derivatives up to the third.

    Where other singular values agree with the largest one to half of the digits, the first
    derivative is a subgradient; at a zero matrix it is zero. All derivatives are finite.

    Args:
        A: shape ``(*batch, n, p)``, real or complex, with entries whose squares do not overflow.

    Returns:
        Tensor of shape ``batch``.
    """
    M = _gram(A)
    M_0 = M.detach()
    mu, V = linalg.eigh(M_0)
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
    """The smaller one of ``A A'`` and ``A' A``; the largest eigenvalue of both is the same."""
    return A @ A.mH if A.shape[-2] <= A.shape[-1] else A.mH @ A
