"""Symmetric positive definite matrices, by their Cholesky factor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from constrained import Constraint, register
from constrained.tolerance import working_dtype
from constraints.softplus import inverse_softplus, softplus


@register("positive_definite", aliases=("spd", "symmetric_positive_definite"))
class PositiveDefinite(Constraint):
    """Symmetric positive definite matrices.

    **Set**: {W in R^(n x n) : W = W', x'Wx > 0 for all x != 0}. Dimension n (n + 1) / 2, open.

    **Map**: X -> L L' with L the lower triangle of X and softplus on its diagonal; the entries
    above the diagonal are not used. Onto the set, up to a rounding term: the diagonal of L L' is
    enlarged by the factor 1 + 2 n eps, so that the result has a Cholesky factor in floating-point
    arithmetic too, whatever X. A matrix is scaled as its diagonal is, so small rows beside large
    ones keep their digits: what the term bounds is the condition number of the correlation matrix.

    **Right inverse**: the Cholesky factor, after division of the diagonal by 1 + 2 n eps. A matrix
    that has none, being singular up to rounding, is taken for the nearest one whose eigenvalues are
    at least eps times the largest.

    **Reference**: Pinheiro and Bates, Unconstrained parametrizations for variance-covariance
    matrices (Statistics and Computing 6, 1996), section 2.1; Higham, Accuracy and Stability of
    Numerical Algorithms (2002), theorem 10.7, for the rounding term.

    Example:
        >>> positive_definite = PositiveDefinite()
        >>> positive_definite(torch.zeros(2, 2))
        tensor([[0.4805, 0.0000],
                [0.0000, 0.4805]])
        >>> W = torch.tensor([[4.0, 2.0], [2.0, 3.0]])
        >>> torch.allclose(positive_definite(positive_definite.right_inverse(W)), W)
        True
        >>> torch.linalg.cholesky_ex(positive_definite(1e3 * torch.randn(64, 64))).info
        tensor(0, dtype=torch.int32)
    """

    event_dim = 2
    closed = False
    examples = (({}, (1, 1)), ({}, (2, 2)), ({}, (5, 5)))

    def forward(self, X: Tensor) -> Tensor:
        """``L L'``, with its diagonal enlarged by a rounding term."""
        finfo = torch.finfo(X.dtype)
        # Squares of a smaller diagonal would be so near to underflow that they lose digits.
        least = (finfo.tiny / finfo.eps) ** 0.5
        diagonal = softplus(_diagonal(X)).clamp(min=least)
        L = X.tril(-1) + torch.diag_embed(diagonal)
        W = _symmetric_part(L @ L.mT)
        return W + torch.diag_embed(_rounding(X) * _diagonal(W))

    def right_inverse(self, value: Tensor) -> Tensor:
        """The Cholesky factor, with the inverse of softplus on its diagonal."""
        W = _symmetric_part(value)
        rounding = _rounding(W)
        # diag(W) = (1 + rounding) diag(L L').
        A = W - torch.diag_embed(rounding / (1 + rounding) * _diagonal(W))
        L, info = torch.linalg.cholesky_ex(A)
        L = torch.where((info > 0)[..., None, None], _clipped_factor(A), L)
        finfo = torch.finfo(value.dtype)
        diagonal = _diagonal(L).clamp(min=(finfo.tiny / finfo.eps) ** 0.5)
        return (L.tril(-1) + torch.diag_embed(inverse_softplus(diagonal))).contiguous()

    def violation(self, value: Tensor) -> Tensor:
        """The larger of two distances: from symmetry, and of the least eigenvalue from 0."""
        skew = ((value - value.mT) / 2).abs().amax((-2, -1))
        least = torch.linalg.eigvalsh(_symmetric_part(value))[..., 0]
        return torch.maximum(skew, F.relu(-least))

    def project(self, value: Tensor) -> Tensor:
        """The nearest point of the closure in the Frobenius norm, moved inside by rounding.

        The eigenvalues of the symmetric part are clipped at 2 n eps times the largest of them in
        absolute value. A symmetric matrix that has a Cholesky factor stays as it is.
        """
        W = _symmetric_part(value)
        eigenvalues, Q = torch.linalg.eigh(W)
        eigenvalues = _clipped(eigenvalues, _rounding(W))
        clipped = _symmetric_part(Q * eigenvalues.unsqueeze(-2) @ Q.mT)
        inside = torch.linalg.cholesky_ex(W).info == 0
        return torch.where(inside[..., None, None], W, clipped)

    def sample(
        self,
        shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Wishart matrices with 2 n degrees of freedom, scaled to the mean I."""
        self.check_shape(shape)
        dtype = dtype or torch.get_default_dtype()
        *batch, n, _ = shape
        normal = torch.randn(
            (*batch, n, 2 * n), generator=generator, dtype=working_dtype(dtype), device=device
        )
        return _symmetric_part(normal @ normal.mT / (2 * n)).to(dtype)

    def dimension(self, shape: Sequence[int]) -> int:
        """``n (n + 1) / 2``."""
        return shape[-1] * (shape[-1] + 1) // 2

    def shape_problem(self, event: tuple[int, ...]) -> str | None:
        """An element is a square matrix."""
        return None if event[0] == event[1] > 0 else "must be a square matrix, not an empty one"


def _rounding(W: Tensor) -> float:
    """The relative size of the term that keeps the Cholesky factorization from breaking down.

    W = L L' in floating-point arithmetic errs by some eps |l_i| |l_j| in the entry i, j, and the
    factorization of W by as much again. Scaled to unit diagonal both errors are matrices whose
    norm is at most n times that. Measured on L with entries from 1e-5 to 1e8, n from 2 to 1024, in
    single precision: n eps / 8 suffices where no column dominates, 2 n eps in all cases.
    """
    return 2 * W.shape[-1] * torch.finfo(W.dtype).eps


def _diagonal(W: Tensor) -> Tensor:
    return W.diagonal(dim1=-2, dim2=-1)


def _symmetric_part(W: Tensor) -> Tensor:
    return (W + W.mT) / 2


def _clipped(eigenvalues: Tensor, relative: float) -> Tensor:
    """Eigenvalues no less than ``relative`` times the largest one; of the zero matrix, eps."""
    largest = eigenvalues.abs().amax(-1, keepdim=True)
    least = torch.where(largest > 0, relative * largest, torch.finfo(eigenvalues.dtype).eps)
    return torch.maximum(eigenvalues, least)


def _clipped_factor(W: Tensor) -> Tensor:
    """The Cholesky factor of W with its eigenvalues clipped, without forming that matrix.

    With M = Q diag(e)^(1/2) the clipped matrix is M M', and M' = H R with H orthogonal and R upper
    triangular gives M M' = R' R: a step in which nothing can break down.
    """
    eigenvalues, Q = torch.linalg.eigh(W)
    M = Q * _clipped(eigenvalues, torch.finfo(W.dtype).eps).sqrt().unsqueeze(-2)
    R = torch.linalg.qr(M.mT, mode="r").R
    return (R * torch.where(_diagonal(R) < 0, -1.0, 1.0).unsqueeze(-1)).mT
