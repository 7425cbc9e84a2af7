"""Symmetric positive definite matrices, as the product of a square matrix and its transpose."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from constrained import Constraint, register
from constrained.constraint.tolerance import working_dtype
from constraints.math.autograd import needs_derivative
from constraints.math.gram import gram, is_mirrored
from constraints.math.regular_start import admitted
from constraints.math.transpose import plus_transpose


@register("positive_definite", aliases=("spd", "symmetric_positive_definite", "cov_matrix"))
class PositiveDefinite(Constraint):
    """Symmetric positive definite matrices.

    **Set**: {W in R^(n x n) : W = W', x'Wx > 0 for all x != 0}. Dimension n (n + 1) / 2, open.

    **Map**: X -> X X' with X of shape (n, n). Onto the set, up to a rounding term: the diagonal is
    enlarged by the factor 1 + 2 n eps, so that the result has a Cholesky factor in floating-point
    arithmetic too, whatever X. The term is relative to each row: small rows beside large ones keep
    their digits, and what it bounds is the condition number of the correlation matrix.

    A gradient step in X is one in the Bures-Wasserstein geometry of W, and leaves the neighbourhood
    of the boundary at an exponential rate. A Cholesky factor with softplus on its diagonal, the
    usual choice, does not: its diagonal sinks to where the derivative of softplus vanishes, and
    training from a nearly singular matrix stalls.

    **Right inverse**: the Cholesky factor, after division of the diagonal by 1 + 2 n eps. A matrix
    that has none, being singular up to rounding, is taken for the nearest one whose eigenvalues are
    at least eps times the largest.

    **Reference**: Bhatia, Jain and Lim, On the Bures-Wasserstein distance between positive definite
    matrices (Expositiones Mathematicae 37, 2019), for the geometry; Higham, Accuracy and
    Stability of Numerical Algorithms (2002), theorem 10.7, for the rounding term.

    Example:
        >>> positive_definite = PositiveDefinite()
        >>> positive_definite(torch.tensor([[1.0, 0.0], [3.0, -2.0]]))
        tensor([[ 1.0000,  3.0000],
                [ 3.0000, 13.0000]])
        >>> W = torch.tensor([[4.0, 2.0], [2.0, 3.0]])
        >>> torch.allclose(positive_definite(positive_definite.right_inverse(W)), W)
        True
        >>> torch.linalg.cholesky_ex(positive_definite(torch.ones(64, 64))).info
        tensor(0, dtype=torch.int32)
    """

    event_dim = 2
    closed = False
    examples = (({}, (1, 1)), ({}, (2, 2)), ({}, (5, 5)))

    def forward(self, X: Tensor) -> Tensor:
        """``X X'``, with its diagonal enlarged by a rounding term."""
        return covariance(X)

    def pullback(self, value: Tensor, gradient: Tensor, X: Tensor) -> tuple[Tensor]:
        """One product with the symmetric part of the gradient."""
        return (covariance_gradient(X, gradient),)

    def thin_pullback(
        self, value: Tensor, left: Tensor, right: Tensor, X: Tensor
    ) -> tuple[Tensor] | None:
        """The same in four products of ``(b, n)`` matrices."""
        if 2 * len(left) > X.shape[-1]:
            return None
        return (thin_covariance_gradient(X, left, right, rounding_of(X)),)

    def right_inverse(self, value: Tensor) -> Tensor:
        """The Cholesky factor."""
        return root(value)

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
        return clipped(value)

    def inwards(self, value: Tensor, share: float) -> Tensor:
        """Small eigenvalues are raised, to ``share^2`` of the mean one or of 1.

        In the eigenvectors of W the derivative is a sum of roots of two eigenvalues.
        """
        W = _symmetric_part(value)
        least = _least_eigenvalue(W, share)
        # It costs less than eigenvalues.
        high = torch.linalg.cholesky_ex(W - torch.diag_embed(least.expand(W.shape[:-1]))).info == 0
        if bool(high.all()):
            return value
        eigenvalues, Q = torch.linalg.eigh(W)
        raised = torch.maximum(eigenvalues, 2 * least).unsqueeze(-2)
        return torch.where(high[..., None, None], value, _symmetric_part(Q * raised @ Q.mT))

    def admit(self, value: Tensor, share: float) -> Tensor:
        """The symmetric part with the absolute values of its eigenvalues, moved inwards.

        The nearest matrix has an eigenvalue of zero for each negative one, whatever its size.
        """
        return admitted(self, value, reflected(_symmetric_part(value)), share)

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
        return None if event[0] == event[1] > 0 else "must be a square matrix with a row or more"


def covariance(X: Tensor) -> Tensor:
    """``X X'``, with its diagonal enlarged by a rounding term: it has a Cholesky factor."""
    rounding, finfo = rounding_of(X), torch.finfo(X.dtype)
    # Smaller squares would be so near to underflow that they have lost digits.
    least = finfo.tiny / finfo.eps
    W = squares(X)
    if not needs_derivative(X):
        _diagonal(W).mul_(1 + rounding).clamp_(min=least)
        return W
    diagonal = _diagonal(W)
    enlarged = (1 + rounding) * diagonal
    enlarged = enlarged + (enlarged.clamp(min=least) - enlarged).detach()
    return W + torch.diag_embed(enlarged - diagonal)


def squares(X: Tensor) -> Tensor:
    """``X X'``, exactly symmetric."""
    if needs_derivative(X) or not is_mirrored(X.mT):
        return _symmetric_part(X @ X.mT)
    return gram(X.mT)


def covariance_gradient(X: Tensor, gradient: Tensor) -> Tensor:
    """The gradient at X from that at ``covariance(X)``: one matrix product."""
    both = plus_transpose(gradient)
    _diagonal(both).mul_(1 + rounding_of(X))
    return both @ X


def thin_covariance_gradient(
    X: Tensor, left: Tensor, right: Tensor, on_the_diagonal: float
) -> Tensor:
    """``(G + G' + 2 d diag(G)) X`` for ``G = left' right`` and a number d."""
    both = torch.cat((left, right)).mT @ torch.cat((right @ X, left @ X))
    diagonal = (left * right).sum(0).mul_(2 * on_the_diagonal)
    return both.addcmul_(X, diagonal.unsqueeze(-1))


def root(value: Tensor) -> Tensor:
    """X with ``covariance(X) == value``, triangular if the value has a Cholesky factor."""
    W = _symmetric_part(value)
    # diag(W) = (1 + rounding) diag(X X').
    rounding = rounding_of(W)
    A = W - torch.diag_embed(rounding / (1 + rounding) * _diagonal(W))
    L, info = torch.linalg.cholesky_ex(A)
    eigenvalues, Q = torch.linalg.eigh(A)
    square_root = Q * _clipped(eigenvalues, torch.finfo(W.dtype).eps).sqrt().unsqueeze(-2)
    return torch.where((info > 0)[..., None, None], square_root, L).contiguous()


def clipped(value: Tensor) -> Tensor:
    """The nearest matrix with a Cholesky factor, up to rounding; one that has it stays as it is."""
    W = _symmetric_part(value)
    eigenvalues, Q = torch.linalg.eigh(W)
    eigenvalues = _clipped(eigenvalues, rounding_of(W))
    nearest = _symmetric_part(Q * eigenvalues.unsqueeze(-2) @ Q.mT)
    inside = torch.linalg.cholesky_ex(W).info == 0
    return torch.where(inside[..., None, None], W, nearest)


def reflected(W: Tensor) -> Tensor:
    """A symmetric matrix with its eigenvalues replaced by their absolute values."""
    eigenvalues, Q = torch.linalg.eigh(W)
    return _symmetric_part(Q * eigenvalues.abs().unsqueeze(-2) @ Q.mT)


def _least_eigenvalue(W: Tensor, share: float) -> Tensor:
    """``share^2`` of the mean eigenvalue or of 1, and no less than rounding; ``(*batch, 1)``."""
    mean = _diagonal(W).mean(-1, keepdim=True)
    return max(share**2, rounding_of(W)) * mean.clamp(min=1)


def rounding_of(W: Tensor) -> float:
    """The relative size of the term that keeps the Cholesky factorization from breaking down.

    W = X X' in floating-point arithmetic errs by some eps |x_i| |x_j| in the entry i, j, and the
    factorization of W by as much again. Scaled to unit diagonal, both errors are matrices of a norm
    of at most n times that. Measured in single precision for n from 2 to 1024, on columns of like
    size, falling, rising, nearly dependent: n eps / 2 suffices up to n = 128, and 2 n eps for the
    blocked factorization of larger matrices that one column dominates.
    """
    return 2 * W.shape[-1] * torch.finfo(W.dtype).eps


def _diagonal(W: Tensor) -> Tensor:
    return W.diagonal(dim1=-2, dim2=-1)


def _symmetric_part(W: Tensor) -> Tensor:
    return (W + W.mT) / 2


def _clipped(eigenvalues: Tensor, relative: float) -> Tensor:
    """Eigenvalues no less than ``relative`` times the largest one; of a zero matrix, eps."""
    finfo = torch.finfo(eigenvalues.dtype)
    largest = eigenvalues.abs().amax(-1, keepdim=True)
    least = torch.where(largest > finfo.tiny / finfo.eps, relative * largest, finfo.eps)
    return torch.maximum(eigenvalues, least)
