"""Lower triangular matrices with a positive diagonal: the Cholesky factors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from constrained import register
from constrained.constraint.sampling import RandomNumbers
from constraints.bases.regular_start import admitted
from constraints.bases.shapes import SquareMatrices
from constraints.math.covariance import triangular_factor
from constraints.math.rounding import kept, least_positive
from constraints.math.softplus import inverse_softplus, least_softplus, softplus


@register("cholesky_factor", aliases=("lower_cholesky", "cholesky_factor_cov"))
class CholeskyFactor(SquareMatrices):
    r"""Lower triangular matrices with a positive diagonal.

    **Use**: the scale matrix of a multivariate normal distribution (``scale_tril``) and other
    factors that are solved with; the covariance is $L L^\top$.

    **Set**: $\{L \in \mathbb{R}^{n \times n} : L_{ij} = 0 \text{ for } j > i, L_{ii} > 0\}$.
    Dimension $n (n + 1) / 2$, open in the space of lower triangular matrices. $L \mapsto L L^\top$
    is a bijection onto the positive definite matrices.

    **Map**: $X \mapsto$ its lower triangle, with softplus on the diagonal,
    $L_{ii} = \log(1 + \exp(X_{ii}))$, onto the set. Where softplus underflows, the entry is the
    root of the smallest normal number, as for `Positive`.

    **Right inverse**: the inverse of softplus, $L_{ii} \mapsto L_{ii} + \log(1 - \exp(-L_{ii}))$,
    on the diagonal. A zero there, which is on the boundary, becomes the machine epsilon, as for
    `project`.

    **Reference**: Stan Reference Manual, section "Cholesky factors of covariance matrices".

    Example:
        >>> L = CholeskyFactor()(torch.tensor([[0.0, 5.0], [2.0, 100.0]]))
        >>> L
        tensor([[  0.6931,   0.0000],
                [  2.0000, 100.0000]])
    """

    closed = False
    examples = (({}, (1, 1)), ({}, (2, 2)), ({}, (5, 5)))

    def forward(self, X: Tensor) -> Tensor:
        """The lower triangle, with softplus on the diagonal."""
        diagonal = X.diagonal(dim1=-2, dim2=-1)
        positive = softplus(diagonal).clamp(min=least_positive(X.dtype))
        return X.tril(-1) + torch.diag_embed(positive)

    def right_inverse(self, value: Tensor) -> Tensor:
        """The inverse of softplus on the diagonal."""
        inside = self.project(value)
        diagonal = inside.diagonal(dim1=-2, dim2=-1).clamp(min=least_positive(value.dtype))
        return inside.tril(-1) + torch.diag_embed(inverse_softplus(diagonal))

    def violation(self, value: Tensor) -> Tensor:
        """The largest absolute value of entries above the diagonal and negative ones on it."""
        diagonal = value.diagonal(dim1=-2, dim2=-1)
        above = value.triu(1).abs()
        return torch.maximum(above.amax((-2, -1)), (-diagonal).clamp(min=0).amax(-1))

    def slack(self, value: Tensor) -> Tensor:
        """The least entry on the diagonal."""
        return value.diagonal(dim1=-2, dim2=-1).amin(-1)

    def project(self, value: Tensor) -> Tensor:
        """The lower triangle, with eps in place of diagonal entries that are not positive."""
        diagonal = value.diagonal(dim1=-2, dim2=-1)
        positive = torch.where(diagonal > 0, diagonal, torch.finfo(value.dtype).eps)
        return value.tril(-1) + torch.diag_embed(positive)

    def project_scaled(self, value: Tensor, scale: Tensor) -> Tensor:
        """The projection: each entry has bounds of its own, whatever its weight."""
        del scale
        return self.project(value)

    def inwards(self, value: Tensor, share: float) -> Tensor:
        """Small diagonal entries raised to the number at which the derivative is ``share``."""
        diagonal = value.diagonal(dim1=-2, dim2=-1)
        raised = diagonal.clamp(min=least_softplus(share))
        return value + torch.diag_embed(raised - diagonal)

    def admit(self, value: Tensor, share: float) -> Tensor:
        """The Cholesky factor of ``A A'``, moved inwards.

        It is as well-conditioned as A, unlike the lower triangle of A.
        """
        return admitted(self, value, triangular_factor(value), share)

    def draw(self, shape: tuple[int, ...], random: RandomNumbers) -> Tensor:
        """Standard normal numbers below the diagonal, log-normal ones on it."""
        X = random.normal(shape)
        return X.tril(-1) + torch.diag_embed(X.diagonal(dim1=-2, dim2=-1).exp())

    def rounded(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        """The matrix, with a diagonal that stays positive when rounded."""
        diagonal = value.diagonal(dim1=-2, dim2=-1)
        return (value.tril(-1) + torch.diag_embed(kept(diagonal, least_positive(dtype)))).to(dtype)

    def dimension(self, shape: Sequence[int]) -> int:
        """``n (n + 1) / 2``."""
        return shape[-1] * (shape[-1] + 1) // 2
