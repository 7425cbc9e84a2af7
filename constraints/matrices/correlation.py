"""Correlation matrices, and their Cholesky factors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from constrained import register
from constrained.constraint.sampling import RandomNumbers
from constrained.constraint.tolerance import tolerance
from constrained.torch_internals import linalg
from constraints.bases.expected_failures import failing, no_derivative
from constraints.bases.regular_start import admitted
from constraints.bases.shapes import SquareMatrices
from constraints.math.autograd import needs_derivative
from constraints.math.covariance import (
    clipped,
    covariance,
    reflected,
    root,
    rounding_of,
    squares,
    thin_covariance_gradient,
    triangular_factor,
)
from constraints.math.matrix import symmetric_part
from constraints.math.nearest_correlation import nearest_correlation
from constraints.math.psd_part import distance_from_psd, least_eigenvalue
from constraints.math.rounding import kept, least_positive
from constraints.math.softplus import inverse_softplus, least_softplus, softplus
from constraints.math.transpose import plus_transpose
from constraints.math.unit_vectors import normalized, normalized_gradient


@register("correlation", aliases=("corr", "corr_matrix", "correlation_matrix", "elliptope"))
class Correlation(SquareMatrices):
    r"""Correlation matrices: positive definite with ones on the diagonal.

    **Use**: correlations beside scales of their own: copulas, multi-task Gaussian processes, priors
    on the covariances of random effects.

    **Set**: $\{W \in \mathbb{R}^{n \times n} : W = W^\top, W_{ii} = 1, x^\top W x > 0 \text{ for
    all } x \ne 0\}$, the interior of the elliptope. Dimension $n (n - 1) / 2$, open in the matrices
    of unit diagonal, convex.

    **Map**: $X \mapsto D^{-1/2} X X^\top D^{-1/2}$, where $D$ is the diagonal of $X X^\top$: the
    correlation matrix of the covariance matrix of `PositiveDefinite`. Onto the set, up to the
    rounding term that keeps the result positive definite.

    **Right inverse**: the Cholesky factor, whose rows have length one.

    **Reference**: Pinheiro and Bates, Unconstrained parametrizations for variance-covariance
    matrices (Statistics and Computing 6, 1996), section 2.3, for factors with rows on the sphere.

    `canonical` scales the rows of $X$ to length one: the result does not depend on their length.
    `project` is a retraction; the nearest correlation matrix has no closed form (Higham, Computing
    the nearest correlation matrix, IMA Journal of Numerical Analysis 22, 2002).

    Example:
        >>> Correlation()(torch.tensor([[2.0, 0.0], [3.0, 4.0]]))
        tensor([[1.0000, 0.6000],
                [0.6000, 1.0000]])
    """

    closed = False
    examples = (({}, (1, 1)), ({}, (2, 2)), ({}, (5, 5)))
    expected_failures = {  # noqa: RUF012 - never changed
        **failing(
            "the nearest correlation matrix has no closed form: project() clips the eigenvalues "
            "and then scales the diagonal to one",
            "nearest",
        ),
        **no_derivative("a row of length zero has no direction", "zero_params"),
    }

    def forward(self, X: Tensor) -> Tensor:
        """``X X'``, scaled to unit diagonal."""
        N = normalized(X, 1.0)
        if needs_derivative(X):
            return _scaled(covariance(N))
        # The same without a division by the diagonal, which is one up to rounding.
        W = squares(N).mul_(1 / (1 + rounding_of(N)))
        W.diagonal(dim1=-2, dim2=-1).fill_(1)
        return W

    def pullback(self, value: Tensor, gradient: Tensor, X: Tensor) -> tuple[Tensor]:
        """One product with the off-diagonal part of the gradient, made tangent row by row."""
        both = plus_transpose(gradient)
        both.diagonal(dim1=-2, dim2=-1).zero_()
        N = normalized(X, 1.0)
        return (normalized_gradient(X, N, both @ N / (1 + rounding_of(N)), 1.0),)

    def thin_pullback(
        self, value: Tensor, left: Tensor, right: Tensor, X: Tensor
    ) -> tuple[Tensor] | None:
        """The gradient of `pullback` in four products of ``(b, n)`` matrices."""
        if 2 * len(left) > X.shape[-1]:
            return None
        N = normalized(X, 1.0)
        both = thin_covariance_gradient(N, left, right, -1.0)
        return (normalized_gradient(X, N, both / (1 + rounding_of(N)), 1.0),)

    def right_inverse(self, value: Tensor) -> Tensor:
        """The Cholesky factor."""
        return root(value)

    def canonical(self, X: Tensor) -> tuple[Tensor]:
        """X with rows scaled to length one."""
        return (normalized(X, 1.0),)

    def violation(self, value: Tensor) -> Tensor:
        """The largest of three distances: from symmetry, unit diagonal, positive semidefinite."""
        diagonal = (value.diagonal(dim1=-2, dim2=-1) - 1).abs().amax(-1)
        return torch.maximum(distance_from_psd(value), diagonal)

    def slack(self, value: Tensor) -> Tensor:
        """The least eigenvalue."""
        return least_eigenvalue(value)

    def project(self, value: Tensor) -> Tensor:
        """A retraction: the nearest positive definite matrix, scaled to unit diagonal.

        It leaves correlation matrices as they are. The row of a variable with the variance zero
        becomes that of the identity.
        """
        W = symmetric_part(value)
        diagonal = W.diagonal(dim1=-2, dim2=-1)
        unit = (diagonal == 1).all(-1) & (linalg.cholesky_ex(W).info == 0)
        scaled = _scaled(clipped(_spread(W)))
        return torch.where(unit[..., None, None], W, scaled)

    def retract(self, value: Tensor) -> Tensor:
        """The nearest member, up to rounding: of iterations, where `project` is a formula.

        Training with ``mode="project"`` comes to rest at an optimum on the boundary only if the
        projections are the nearest matrices.
        """
        W = symmetric_part(value)
        W = W + torch.diag_embed(1 - W.diagonal(dim1=-2, dim2=-1))
        # Where only the diagonal has to be moved, no matrix is nearer.
        if bool((linalg.cholesky_ex(W).info == 0).all()):
            return W
        return _scaled(clipped(nearest_correlation(value)))

    def nearby(self, value: Tensor) -> Tensor:
        """The nearest positive semidefinite matrices of unit diagonal."""
        return nearest_correlation(value)

    def inwards(self, value: Tensor, share: float) -> Tensor:
        """Matrices with an eigenvalue below ``share^2`` are mixed with the identity."""
        least = max(share**2, rounding_of(value))
        identity = torch.eye(value.shape[-1], dtype=value.dtype, device=value.device)
        high = linalg.cholesky_ex(value - least * identity).info == 0
        mixed = (1 - 2 * least) * value + 2 * least * identity
        return torch.where(high[..., None, None], value, mixed)

    def admit(self, value: Tensor, share: float) -> Tensor:
        """As `project`, but with negative eigenvalues negated; then moved inwards."""
        candidate = _scaled(clipped(reflected(_spread(symmetric_part(value)))))
        return admitted(self, value, candidate, share)

    def draw(self, shape: tuple[int, ...], random: RandomNumbers) -> Tensor:
        """The correlation matrices of 2 n independent standard normal vectors."""
        normal = random.normal((*shape[:-1], 2 * shape[-1]))
        return _scaled(symmetric_part(normal @ normal.mT))

    def dimension(self, shape: Sequence[int]) -> int:
        """``n (n - 1) / 2``."""
        return shape[-1] * (shape[-1] - 1) // 2


@register("correlation_cholesky", aliases=("corr_cholesky", "cholesky_factor_corr"))
class CorrelationCholesky(SquareMatrices):
    r"""Cholesky factors of correlation matrices.

    **Use**: the usual pair of Pyro and Stan: this factor and positive scales give the
    ``scale_tril`` of a multivariate normal distribution.

    **Set**: $\{L \in \mathbb{R}^{n \times n} : L_{ij} = 0 \text{ for } j > i, L_{ii} > 0, \sum_j
    L_{ij}^2 = 1\}$. Dimension $n (n - 1) / 2$, open in the triangular matrices with rows of length
    one. $L \mapsto L L^\top$ is a bijection onto the correlation matrices.

    **Map**: $X \mapsto$ its lower triangle, with softplus on the diagonal, the rows scaled to
    length one, onto the set.

    **Right inverse**: the inverse of softplus on the diagonal. A zero there, which is on the
    boundary, becomes the machine epsilon, as for `project`.

    **Reference**: Stan Reference Manual, section "Cholesky factors of correlation matrices", for
    the set; Pinheiro and Bates, Unconstrained parametrizations for variance-covariance matrices
    (Statistics and Computing 6, 1996), section 2.3, for rows on the sphere.

    `canonical` gives the parameter for which the rows have length one before they are scaled.

    Example:
        >>> L = CorrelationCholesky()(torch.zeros(2, 2))
        >>> torch.allclose(L @ L.mT, torch.eye(2))
        True
    """

    recompute_in_backward = True
    closed = False
    examples = (({}, (1, 1)), ({}, (2, 2)), ({}, (5, 5)))

    def forward(self, X: Tensor) -> Tensor:
        """The lower triangle, with softplus on the diagonal and rows of length one."""
        # Softplus of a large negative number underflows; its square would underflow earlier.
        diagonal = kept(softplus(X.diagonal(dim1=-2, dim2=-1)), least_positive(X.dtype))
        return _with_diagonal(normalized(X.tril(-1) + torch.diag_embed(diagonal), 1.0), X.dtype)

    def right_inverse(self, value: Tensor) -> Tensor:
        """The inverse of softplus on the diagonal."""
        inside = self.project(value)
        diagonal = inverse_softplus(inside.diagonal(dim1=-2, dim2=-1))
        return inside.tril(-1) + torch.diag_embed(diagonal)

    def canonical(self, X: Tensor) -> tuple[Tensor]:
        """The parameter of the same element whose rows have length one before they are scaled."""
        return (self.right_inverse(self.forward(X)),)

    def tangent(self, value: Tensor, vector: Tensor) -> Tensor:
        """The lower triangle of the vector, with rows made orthogonal to those of the value."""
        lower = vector.tril()
        return lower - value * (lower * value).sum(-1, keepdim=True)

    def admissible(self, value: Tensor, gradient: Tensor) -> Tensor:
        """`tangent`, without what leads a diagonal entry of zero, up to rounding, below zero."""
        rounding = 2 * torch.finfo(value.dtype).eps
        ends = value.diagonal(dim1=-2, dim2=-1) <= rounding
        outwards = ends & (gradient.diagonal(dim1=-2, dim2=-1) > 0)
        return self.tangent(value, gradient.masked_fill(torch.diag_embed(outwards), 0))

    def violation(self, value: Tensor) -> Tensor:
        """The largest of three errors: above the diagonal, negative on it, of a row's length."""
        above = value.triu(1).abs().amax((-2, -1))
        below = (-value.diagonal(dim1=-2, dim2=-1)).clamp(min=0).amax(-1)
        length = linalg.vector_norm(value, dim=-1)
        # On the meta device torch 2.11 keeps a dimension of one entry.
        length = (length.reshape(value.shape[:-1]) - 1).abs().amax(-1)
        return torch.stack((above, below, length)).amax(0)

    def slack(self, value: Tensor) -> Tensor:
        """The least entry on the diagonal."""
        return value.diagonal(dim1=-2, dim2=-1).amin(-1)

    def project(self, value: Tensor) -> Tensor:
        """The nearest point of the closure in the Frobenius norm, moved inside by rounding.

        Negative diagonal entries become zero, and rows are scaled; a row of zeros becomes that of
        the identity. Zeros on the diagonal then become the machine epsilon.
        """
        member = (self.violation(value) <= tolerance(value, 2))[..., None, None]
        lower = value.tril()
        diagonal = lower.diagonal(dim1=-2, dim2=-1)
        lower = lower - torch.diag_embed(diagonal.clamp(max=0))
        empty = (lower == 0).all(-1, keepdim=True)
        identity = torch.eye(value.shape[-1], dtype=value.dtype, device=value.device)
        nearest = normalized(torch.where(empty, identity, lower), 1.0)
        nearest = torch.where(member, lower, nearest)
        diagonal = nearest.diagonal(dim1=-2, dim2=-1)
        raised = torch.where(diagonal > 0, diagonal, torch.finfo(value.dtype).eps)
        return nearest.tril(-1) + torch.diag_embed(raised)

    def inwards(self, value: Tensor, share: float) -> Tensor:
        """Small diagonal entries become the number at which softplus has the derivative ``share``.

        The other entries of the row are scaled down, so that its length stays one.
        """
        diagonal = value.diagonal(dim1=-2, dim2=-1)
        least = least_softplus(share)
        # A row is no longer than 1 + least, which is below 2.
        raised = torch.where(diagonal < least, 2 * least, diagonal)
        moved = normalized(value + torch.diag_embed(raised - diagonal), 1.0)
        return torch.where((diagonal < least).unsqueeze(-1), moved, value)

    def admit(self, value: Tensor, share: float) -> Tensor:
        """The factor of the correlation matrix of ``A A'``, moved inwards."""
        return admitted(self, value, self.project(triangular_factor(value)), share)

    def draw(self, shape: tuple[int, ...], random: RandomNumbers) -> Tensor:
        """Standard normal numbers on and below the diagonal, positive on it, rows of length one."""
        X = random.normal(shape)
        positive = X.diagonal(dim1=-2, dim2=-1).abs().clamp(min=torch.finfo(X.dtype).eps)
        return normalized(X.tril(-1) + torch.diag_embed(positive), 1.0)

    def rounded(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        """The matrix, with a diagonal that stays positive when rounded."""
        return _with_diagonal(value, dtype).to(dtype)

    def dimension(self, shape: Sequence[int]) -> int:
        """``n (n - 1) / 2``."""
        return shape[-1] * (shape[-1] - 1) // 2


def _with_diagonal(L: Tensor, dtype: torch.dtype) -> Tensor:
    """A triangular matrix, with a diagonal that stays positive in a dtype."""
    diagonal = L.diagonal(dim1=-2, dim2=-1)
    return L.tril(-1) + torch.diag_embed(kept(diagonal, least_positive(dtype)))


def _scaled(W: Tensor) -> Tensor:
    """A covariance matrix divided by the roots of its diagonal, which becomes one exactly."""
    size = W.diagonal(dim1=-2, dim2=-1).sqrt()
    result = symmetric_part(W / size.unsqueeze(-1) / size.unsqueeze(-2))
    rest = 1 - result.diagonal(dim1=-2, dim2=-1)
    return result + torch.diag_embed(rest)


def _spread(W: Tensor) -> Tensor:
    """The matrix, with the identity's row and column where a variance is zero or less."""
    variance = W.diagonal(dim1=-2, dim2=-1)
    none = variance <= 0
    identity = torch.eye(W.shape[-1], dtype=W.dtype, device=W.device)
    return torch.where(none.unsqueeze(-1) | none.unsqueeze(-2), identity, W)
