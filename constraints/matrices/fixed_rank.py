"""Matrices of exactly a given rank."""

from __future__ import annotations

import torch
from torch import Tensor

from constrained import register
from constrained.constraint.tolerance import tolerance
from constraints.math.full_rank import factors, full_rank_product, least, raised_by
from constraints.math.leading_eigenvalues import leading_eigenvalues
from constraints.math.matrix import symmetric_part
from constraints.math.rank_tangent import psd_rank_tangent, rank_tangent
from constraints.math.svd import svd, svdvals
from constraints.matrices.low_rank import OfRank
from constraints.matrices.positive_semidefinite import PSDOfRank


@register("fixed_rank", aliases=("fixed_rank_embedded",))
class FixedRank(OfRank):
    r"""Matrices of exactly a given rank.

    **Use**: factors that must keep their rank: latent dimensions that may not collapse, low-rank
    adapters that use all of theirs. Where the rank may fall take `low_rank`.

    **Set**: $\{W \in \mathbb{R}^{m \times n} : \operatorname{rank} W = r\}$. A manifold of
    dimension $r (m + n - r)$. Its closure, where the violation is zero, also contains the matrices
    of lower rank (`low_rank`).

    **Map**: $(A, B) \mapsto A B^\top + c \operatorname{polar}(A) \operatorname{polar}(B)^\top$ with
    $A$ of shape $(m, r)$ and $B$ of shape $(n, r)$. The rounding term, with
    $c = 2 n \varepsilon \lVert A \rVert_F \lVert B \rVert_F$, keeps the rank from falling. Onto the
    set, except for matrices whose smallest singular value is a rounding error of the largest.

    **Right inverse**: balanced factors of the singular value decomposition, without the rounding
    term.

    **Reference**: Mishra, Meyer, Bonnabel and Sepulchre, Fixed-rank matrix factorizations and
    Riemannian low-rank optimization (Computational Statistics 29, 2014), section 3.1; Ge, Jin and
    Zheng, No spurious local minima in nonconvex low rank problems (ICML 2017). With the coordinates
    of section 3.2 of the former, orthonormal factors and a positive definite matrix between them,
    training gets stuck at lower ranks, which it cannot cross.

    Args:
        rank: the rank $r$, from 1 to $\min(m, n)$.

    Example:
        >>> W = FixedRank(rank=1).project(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
        >>> torch.allclose(W, torch.tensor([[3.0, 0.0], [0.0, 0.0]]))
        True
    """

    closed = False
    examples = (
        ({"rank": 1}, (1, 1)),
        ({"rank": 1}, (2, 2)),
        ({"rank": 2}, (6, 3)),
        ({"rank": 2}, (3, 5)),
        ({"rank": 3}, (5, 4)),
    )

    def forward(self, A: Tensor, B: Tensor) -> Tensor:
        """``A B'`` plus the rounding term."""
        return full_rank_product(A, B)

    def right_inverse(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Balanced factors of the singular value decomposition, without the rounding term."""
        U, s, Vh = svd(value)
        return factors(U[..., : self.rank], s[..., : self.rank], Vh[..., : self.rank, :].mT)

    def tangent(self, value: Tensor, vector: Tensor) -> Tensor:
        """``P V + V Q - P V Q`` with the projections P and Q onto columns and rows of the value."""
        return rank_tangent(value, vector, self.rank)

    def violation(self, value: Tensor) -> Tensor:
        """The distance in the spectral norm from the closure: the singular value number r + 1."""
        s = svdvals(value)
        return s[..., self.rank] if s.shape[-1] > self.rank else s[..., 0] * 0

    def slack(self, value: Tensor) -> Tensor:
        """The singular value number r: where it is 0 the rank is lower."""
        return svdvals(value)[..., self.rank - 1]

    def project(self, value: Tensor) -> Tensor:
        """The nearest point of the closure, the truncated decomposition, moved inside by rounding.

        It is nearest in every unitarily invariant norm. Singular values are raised to at least
        4 n eps times their sum. A matrix that needs no such change is returned as it is.
        """
        U, s, Vh = svd(value)
        leading_values = s[..., : self.rank]
        lowest = least(leading_values, value)
        kept = torch.maximum(leading_values, lowest).unsqueeze(-2)
        nearest = (U[..., : self.rank] * kept) @ Vh[..., : self.rank, :]
        inside = (leading_values >= lowest).all(-1) & (self.violation(value) <= tolerance(value, 2))
        return torch.where(inside[..., None, None], value, nearest)

    def inwards(self, value: Tensor, share: float) -> Tensor:
        """Small singular values raised to ``share^2`` of the mean of the r largest, or of 1."""
        U, s, Vh = svd(value)
        leading_values = s[..., : self.rank]
        raised = raised_by(leading_values, value, share)
        moved = (U[..., : self.rank] * raised.unsqueeze(-2)) @ Vh[..., : self.rank, :]
        return torch.where((raised == leading_values).all(-1)[..., None, None], value, moved)


@register("psd_fixed_rank", aliases=("positive_semidefinite_fixed_rank",))
class PSDFixedRank(PSDOfRank):
    r"""Positive semidefinite matrices of exactly a given rank.

    **Use**: covariances and kernels with exactly $r$ factors; Gram matrices of points in $r$
    dimensions.

    **Set**: $\{W \in \mathbb{R}^{n \times n} : W = W^\top, x^\top W x \ge 0 \text{ for all } x,
    \operatorname{rank} W = r\}$. A manifold of dimension $n r - r (r - 1) / 2$. Its closure, where
    the violation is zero, also contains the matrices of lower rank (`psd_low_rank`).

    **Map**: $A \mapsto A A^\top + c \operatorname{polar}(A) \operatorname{polar}(A)^\top$ with $A$
    of shape $(n, r)$. The rounding term, with $c = 2 n \varepsilon \lVert A \rVert_F^2$, keeps the
    rank from falling. Onto the set, except for matrices whose smallest eigenvalue is a rounding
    error of the largest.

    **Right inverse**: eigenvectors times roots of the eigenvalues, without the rounding term.

    **Reference**: Journee, Bach, Absil and Sepulchre, Low-rank optimization on the cone of positive
    semidefinite matrices (SIAM Journal on Optimization 20, 2010).

    Args:
        rank: the rank $r$, from 1 to $n$.

    Example:
        >>> W = PSDFixedRank(rank=1).project(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
        >>> torch.allclose(W, torch.tensor([[3.0, 0.0], [0.0, 0.0]]))
        True
    """

    closed = False
    examples = (
        ({"rank": 1}, (1, 1)),
        ({"rank": 1}, (3, 3)),
        ({"rank": 2}, (5, 5)),
        ({"rank": 3}, (3, 3)),
    )

    def forward(self, A: Tensor) -> Tensor:
        """``A A'`` plus the rounding term."""
        return symmetric_part(full_rank_product(A, A))

    def right_inverse(self, value: Tensor) -> Tensor:
        """Eigenvectors times roots of the eigenvalues, without the rounding term."""
        eigenvalues, Q = leading_eigenvalues(value, self.rank)
        return factors(Q, eigenvalues.clamp(min=0), Q)[0]

    def tangent(self, value: Tensor, vector: Tensor) -> Tensor:
        """``P V + V P - P V P`` for the symmetric part of V, with the projection P on the range.

        A matrix with an eigenvalue as small as `project` leaves it is at the end of the set. There
        it is the projection onto the tangent cone.
        """
        eigenvalues = leading_eigenvalues(value, self.rank)[0].clamp(min=0)
        total = eigenvalues.sum(-1, keepdim=True)
        # In the place of the zero matrix there is a multiple of a projection.
        is_zero = total <= 2 * self.rank * least(torch.zeros_like(eigenvalues), value)
        lowest = torch.where(is_zero, total, 2 * least(eigenvalues, value))
        return psd_rank_tangent(value, vector, self.rank, lowest)

    def slack(self, value: Tensor) -> Tensor:
        """The eigenvalue number r: where it is 0 the rank is lower."""
        return leading_eigenvalues(value, self.rank)[0][..., -1]

    def project(self, value: Tensor) -> Tensor:
        """The nearest point of the closure in the Frobenius norm, moved inside by rounding.

        It keeps the r largest eigenvalues, raised to at least 4 n eps times their sum. A matrix
        that needs no such change is returned as it is.
        """
        eigenvalues, Q = leading_eigenvalues(value, self.rank)
        eigenvalues = eigenvalues.clamp(min=0)
        lowest = least(eigenvalues, value)
        kept = torch.maximum(eigenvalues, lowest).unsqueeze(-2)
        inside = (eigenvalues >= lowest).all(-1) & (self.violation(value) <= tolerance(value, 2))
        return torch.where(inside[..., None, None], value, symmetric_part((Q * kept) @ Q.mT))

    def inwards(self, value: Tensor, share: float) -> Tensor:
        """Small eigenvalues raised to ``share^2`` of the mean of the r largest, or of 1."""
        eigenvalues, Q = leading_eigenvalues(value, self.rank)
        raised = raised_by(eigenvalues, value, share)
        moved = symmetric_part((Q * raised.unsqueeze(-2)) @ Q.mT)
        return torch.where((raised == eigenvalues).all(-1)[..., None, None], value, moved)
