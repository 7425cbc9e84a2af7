"""Symmetric positive definite matrices, as the product of a square matrix and its transpose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from constrained import register
from constrained.constraint.sampling import RandomNumbers
from constrained.torch_internals import linalg
from constraints.bases.regular_start import admitted
from constraints.bases.shapes import SquareMatrices
from constraints.math.affine_invariant import gradient_coordinates, moved
from constraints.math.covariance import (
    clipped,
    covariance,
    covariance_gradient,
    reflected,
    root,
    rounding_of,
    thin_covariance_gradient,
)
from constraints.math.matrix import symmetric_part
from constraints.math.psd_part import distance_from_psd, least_eigenvalue


@register(
    "positive_definite", aliases=("spd", "symmetric_positive_definite", "cov_matrix", "covariance")
)
class PositiveDefinite(SquareMatrices):
    r"""Symmetric positive definite matrices, such as covariance matrices.

    **Use**: covariance and precision matrices, metrics and kernels, Lyapunov functions, mass and
    inertia. Where singular matrices are allowed take `positive_semidefinite`.

    **Set**: $\{W \in \mathbb{R}^{n \times n} : W = W^\top, x^\top W x > 0 \text{ for all } x \ne
    0\}$. Dimension $n (n + 1) / 2$, open.

    **Map**: $X \mapsto X X^\top$ with $X$ of shape $(n, n)$. Onto the set, up to a rounding term:
    the diagonal is enlarged by the factor $1 + 2 n \varepsilon$, so that for every $X$ the computed
    result has a Cholesky factor. The term is relative to each row, so small rows beside large ones
    keep their digits. It bounds the condition number of the correlation matrix, not that of the
    result.

    A gradient step in $X$ is one in the Bures-Wasserstein geometry of $W$, and leaves the
    neighbourhood of the boundary at an exponential rate. With the usual choice, a Cholesky factor
    with softplus on its diagonal, it does not: near a singular matrix the derivative of softplus
    vanishes, and training stalls.

    **Right inverse**: the Cholesky factor, after division of the diagonal by $1 + 2 n \varepsilon$.
    A matrix without one, which is singular up to rounding, is replaced by the nearest one whose
    eigenvalues are at least $\varepsilon$ times the largest.

    **Metric**: optimizers of `constrained.optim` walk on the set itself. With
    ``metric="affine_invariant"`` they measure a step V at W by
    $\lVert W^{-1/2} V W^{-1/2} \rVert_F$. The boundary is then infinitely far away, and a loss
    such as a log-likelihood is as well conditioned at a matrix of condition 1e6 as at I.

    **Reference**: Bhatia, Jain and Lim, On the Bures-Wasserstein distance between positive definite
    matrices (Expositiones Mathematicae 37, 2019), for the geometry; Higham, Accuracy and
    Stability of Numerical Algorithms (2002), theorem 10.7, for the rounding term; Bhatia, Positive
    definite matrices (2007), chapter 6, for the affine-invariant metric.

    Args:
        metric: ``"euclidean"`` or ``"affine_invariant"``: the inner product of tangent vectors,
            which `constrained.optim` takes. The set and the map are the same. As a part of a
            product or a chain the set has the Euclidean one.

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

    closed = False
    examples = (
        ({}, (1, 1)),
        ({}, (2, 2)),
        ({}, (5, 5)),
        ({"metric": "affine_invariant"}, (4, 4)),
    )

    #: Version 0.1 has pickled objects without it.
    metric: Literal["euclidean", "affine_invariant"] = "euclidean"

    def __init__(self, metric: Literal["euclidean", "affine_invariant"] = "euclidean") -> None:
        super().__init__()
        if metric not in ("euclidean", "affine_invariant"):
            raise ValueError(
                f"positive_definite: metric must be 'euclidean' or 'affine_invariant', not "
                f"{metric!r}."
            )
        self.metric = metric

    def forward(self, X: Tensor) -> Tensor:
        """``X X'``, with its diagonal enlarged by a rounding term."""
        return covariance(X)

    def pullback(self, value: Tensor, gradient: Tensor, X: Tensor) -> tuple[Tensor]:
        """One product with the symmetric part of the gradient."""
        return (covariance_gradient(X, gradient),)

    def thin_pullback(
        self, value: Tensor, left: Tensor, right: Tensor, X: Tensor
    ) -> tuple[Tensor] | None:
        """The gradient of `pullback` in four products of ``(b, n)`` matrices."""
        if 2 * len(left) > X.shape[-1]:
            return None
        return (thin_covariance_gradient(X, left, right, rounding_of(X)),)

    def right_inverse(self, value: Tensor) -> Tensor:
        """The Cholesky factor."""
        return root(value)

    def violation(self, value: Tensor) -> Tensor:
        """The larger of two distances: from symmetry, and of the least eigenvalue from 0."""
        return distance_from_psd(value)

    def slack(self, value: Tensor) -> Tensor:
        """The least eigenvalue."""
        return least_eigenvalue(value)

    def project(self, value: Tensor) -> Tensor:
        """The nearest point of the closure in the Frobenius norm, moved inside by rounding.

        The eigenvalues of the symmetric part are clipped at 2 n eps times the largest of them in
        absolute value. A symmetric matrix that has a Cholesky factor is returned as it is.
        """
        return clipped(value)

    def has_boundary(self) -> bool:
        """Whether the boundary is at a finite distance."""
        return self.metric == "euclidean"

    def riemannian_gradient(self, value: Tensor, gradient: Tensor) -> Tensor:
        """With the affine-invariant metric ``L' G L``, with the Cholesky factor L of the value."""
        if self.metric == "euclidean":
            return super().riemannian_gradient(value, gradient)
        return gradient_coordinates(value, gradient)

    def move(self, value: Tensor, vector: Tensor) -> Tensor:
        """With the affine-invariant metric the curve of `constraints.math.affine_invariant`."""
        if self.metric == "euclidean":
            return super().move(value, vector)
        return moved(value, vector)

    def transport(self, vector: Tensor, new: Tensor) -> Tensor:
        """With the affine-invariant metric the coordinates stay as they are."""
        if self.metric == "euclidean":
            return super().transport(vector, new)
        return vector

    def inwards(self, value: Tensor, share: float) -> Tensor:
        """Small eigenvalues raised to ``share^2`` of the mean one, or of 1 if that is more.

        In the basis of the eigenvectors of W, an entry of the derivative is the sum of the roots of
        two eigenvalues.
        """
        W = symmetric_part(value)
        # `share^2` of the mean eigenvalue, or of 1 if that is more, and no less than rounding.
        mean = W.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True)
        least = max(share**2, rounding_of(W)) * mean.clamp(min=1)
        # A Cholesky factorization costs less than the eigenvalues.
        high = linalg.cholesky_ex(W - torch.diag_embed(least.expand(W.shape[:-1]))).info == 0
        if bool(high.all()):
            return value
        eigenvalues, Q = linalg.eigh(W)
        raised = torch.maximum(eigenvalues, 2 * least).unsqueeze(-2)
        return torch.where(high[..., None, None], value, symmetric_part(Q * raised @ Q.mT))

    def admit(self, value: Tensor, share: float) -> Tensor:
        """The symmetric part with the absolute values of its eigenvalues, moved inwards.

        The projection would replace each negative eigenvalue by zero, whatever its size.
        """
        return admitted(self, value, reflected(symmetric_part(value)), share)

    def draw(self, shape: tuple[int, ...], random: RandomNumbers) -> Tensor:
        """Wishart matrices with 2 n degrees of freedom, scaled to the mean I."""
        n = shape[-1]
        normal = random.normal((*shape[:-1], 2 * n))
        return symmetric_part(normal @ normal.mT / (2 * n))

    def dimension(self, shape: Sequence[int]) -> int:
        """``n (n + 1) / 2``."""
        return shape[-1] * (shape[-1] + 1) // 2
