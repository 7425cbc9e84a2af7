"""Matrices of exactly a given rank."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from constrained import Constraint, register
from constrained.constraint.tolerance import tolerance, working_dtype
from constraints.bases.arguments import checked_rank
from constraints.bases.linear_space import not_square
from constraints.math.full_rank import factors, full_rank_product, least, raised_by
from constraints.math.psd_part import symmetric_part
from constraints.math.svd import svd, svdvals


@register("fixed_rank", aliases=("fixed_rank_embedded",))
class FixedRank(Constraint):
    """Matrices of a given rank, no less and no more.

    **Set**: {W in R^(m x n) : rank(W) = r}. A manifold of dimension r (m + n - r); its closure,
    where the violation is zero, are the matrices of lower rank too (`low_rank`).

    **Map**: (A, B) -> A B' + c polar(A) polar(B)' with A of shape (m, r) and B of shape (n, r). The
    rounding term, with c = 2 n eps |A| |B|, keeps the rank from falling. Onto the set, up to
    matrices whose smallest singular value is rounding beside the largest.

    **Right inverse**: balanced factors of the singular value decomposition, less the rounding term.

    **Reference**: Mishra, Meyer, Bonnabel and Sepulchre, Fixed-rank matrix factorizations and
    Riemannian low-rank optimization (Computational Statistics 29, 2014), section 3.1; Ge, Jin and
    Zheng, No spurious local minima in nonconvex low rank problems (ICML 2017): with orthonormal
    factors and a positive definite matrix between them, section 3.2 there, training ends at lower
    ranks, which cannot be crossed.

    Args:
        rank: the rank r, from 1 to min(m, n).

    Example:
        >>> W = FixedRank(rank=1).project(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
        >>> torch.allclose(W, torch.tensor([[3.0, 0.0], [0.0, 0.0]]))
        True
    """

    event_dim = 2
    closed = False
    examples = (
        ({"rank": 1}, (1, 1)),
        ({"rank": 1}, (2, 2)),
        ({"rank": 2}, (6, 3)),
        ({"rank": 2}, (3, 5)),
        ({"rank": 3}, (5, 4)),
    )

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = checked_rank("fixed_rank", rank)

    def forward(self, A: Tensor, B: Tensor) -> Tensor:
        """``A B'`` and the rounding term."""
        return full_rank_product(A, B)

    def right_inverse(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Balanced factors of the singular value decomposition, less the rounding term."""
        U, s, Vh = svd(value)
        return factors(U[..., : self.rank], s[..., : self.rank], Vh[..., : self.rank, :].mT)

    def violation(self, value: Tensor) -> Tensor:
        """The distance in the spectral norm from lower ranks: the singular value number r + 1."""
        s = svdvals(value)
        return s[..., self.rank] if s.shape[-1] > self.rank else s[..., 0] * 0

    def project(self, value: Tensor) -> Tensor:
        """The nearest point of the closure, the truncated decomposition, moved inside by rounding.

        Nearest in every unitarily invariant norm. Singular values are at least 4 n eps times
        the sum of all; a matrix of which that holds stays as it is.
        """
        U, s, Vh = svd(value)
        leading_values = s[..., : self.rank]
        lowest = least(leading_values, value)
        kept = torch.maximum(leading_values, lowest).unsqueeze(-2)
        nearest = (U[..., : self.rank] * kept) @ Vh[..., : self.rank, :]
        inside = (leading_values >= lowest).all(-1) & (self.violation(value) <= tolerance(value, 2))
        return torch.where(inside[..., None, None], value, nearest)

    def inwards(self, value: Tensor, share: float) -> Tensor:
        """Small singular values are raised, to ``share^2`` of the mean of r of them, or of 1."""
        U, s, Vh = svd(value)
        leading_values = s[..., : self.rank]
        raised = raised_by(leading_values, value, share)
        moved = (U[..., : self.rank] * raised.unsqueeze(-2)) @ Vh[..., : self.rank, :]
        return torch.where((raised == leading_values).all(-1)[..., None, None], value, moved)

    def sample(
        self,
        shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """The product of two standard normal factors, divided by sqrt(r): entries of variance 1."""
        self.check_shape(shape)
        dtype = dtype or torch.get_default_dtype()
        *batch, m, n = shape
        factors = torch.randn(
            (*batch, m + n, self.rank),
            generator=generator,
            dtype=working_dtype(dtype),
            device=device,
        )
        U, V = factors.split([m, n], -2)
        return (U @ V.mT / self.rank**0.5).to(dtype)

    def dimension(self, shape: Sequence[int]) -> int:
        """``r (m + n - r)``."""
        return self.rank * (shape[-2] + shape[-1] - self.rank)

    def shape_problem(self, event: tuple[int, ...]) -> str | None:
        """Both sides of the matrix are at least the rank."""
        if min(event) >= self.rank:
            return None
        return f"must have at least {self.rank} rows and columns to hold a matrix of that rank"


@register("psd_fixed_rank", aliases=("positive_semidefinite_fixed_rank",))
class PSDFixedRank(Constraint):
    """Positive semidefinite matrices of a given rank, no less and no more.

    **Set**: {W in R^(n x n) : W = W', x'Wx >= 0 for all x, rank(W) = r}. A manifold of dimension
    n r - r (r - 1) / 2; its closure, where the violation is zero, are lower ranks too
    (`psd_low_rank`).

    **Map**: A -> A A' + c polar(A) polar(A)' with A of shape (n, r). The rounding term, with
    c = 2 n eps |A|^2, keeps the rank from falling. Onto the set, up to matrices whose smallest
    eigenvalue is rounding beside the largest.

    **Right inverse**: eigenvectors times roots of the eigenvalues, less the rounding term.

    **Reference**: Journee, Bach, Absil and Sepulchre, Low-rank optimization on the cone of positive
    semidefinite matrices (SIAM Journal on Optimization 20, 2010).

    Args:
        rank: the rank r, from 1 to n.

    Example:
        >>> W = PSDFixedRank(rank=1).project(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
        >>> torch.allclose(W, torch.tensor([[3.0, 0.0], [0.0, 0.0]]))
        True
    """

    event_dim = 2
    closed = False
    examples = (
        ({"rank": 1}, (1, 1)),
        ({"rank": 1}, (3, 3)),
        ({"rank": 2}, (5, 5)),
        ({"rank": 3}, (3, 3)),
    )

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = checked_rank("psd_fixed_rank", rank)

    def forward(self, A: Tensor) -> Tensor:
        """``A A'`` and the rounding term."""
        return symmetric_part(full_rank_product(A, A))

    def right_inverse(self, value: Tensor) -> Tensor:
        """Eigenvectors times roots of the eigenvalues, less the rounding term."""
        eigenvalues, Q = leading(value, self.rank)
        return factors(Q, eigenvalues.clamp(min=0), Q)[0]

    def violation(self, value: Tensor) -> Tensor:
        """The largest of three: asymmetry, negative eigenvalues, and positive ones but r."""
        return beyond(value, self.rank)

    def project(self, value: Tensor) -> Tensor:
        """The nearest point of the closure in the Frobenius norm, moved inside by rounding.

        It keeps the r largest eigenvalues, which are at least 4 n eps times the sum of all; a
        matrix of which that holds stays as it is.
        """
        eigenvalues, Q = leading(value, self.rank)
        eigenvalues = eigenvalues.clamp(min=0)
        lowest = least(eigenvalues, value)
        kept = torch.maximum(eigenvalues, lowest).unsqueeze(-2)
        inside = (eigenvalues >= lowest).all(-1) & (self.violation(value) <= tolerance(value, 2))
        return torch.where(inside[..., None, None], value, symmetric_part((Q * kept) @ Q.mT))

    def inwards(self, value: Tensor, share: float) -> Tensor:
        """Small eigenvalues are raised, to ``share^2`` of the mean of r of them, or of 1."""
        eigenvalues, Q = leading(value, self.rank)
        raised = raised_by(eigenvalues, value, share)
        moved = symmetric_part((Q * raised.unsqueeze(-2)) @ Q.mT)
        return torch.where((raised == eigenvalues).all(-1)[..., None, None], value, moved)

    def sample(
        self,
        shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Wishart matrices with r degrees of freedom, divided by r: of mean I."""
        self.check_shape(shape)
        return wishart(shape, self.rank, generator, dtype, device)

    def dimension(self, shape: Sequence[int]) -> int:
        """``n r - r (r - 1) / 2``."""
        return shape[-1] * self.rank - self.rank * (self.rank - 1) // 2

    def shape_problem(self, event: tuple[int, ...]) -> str | None:
        """An element is a square matrix of at least r rows."""
        return not_square(event) or too_small(event, self.rank)


def too_small(event: tuple[int, ...], rank: int) -> str | None:
    """The problem of a square matrix with fewer rows than its rank."""
    return None if event[-1] >= rank else f"must have at least {rank} rows to be of that rank"


def leading(value: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The largest eigenvalues of the symmetric part, in descending order, and their vectors."""
    eigenvalues, Q = torch.linalg.eigh(symmetric_part(value))
    return eigenvalues[..., -rank:].flip(-1), Q[..., -rank:].flip(-1).contiguous()


def beyond(value: Tensor, rank: int) -> Tensor:
    """The largest of three: asymmetry, negative eigenvalues, and positive ones but a number."""
    skew = ((value - value.mT) / 2).abs().amax((-2, -1))
    eigenvalues = torch.linalg.eigvalsh(symmetric_part(value))
    error = torch.maximum(skew, (-eigenvalues[..., 0]).clamp(min=0))
    if rank < eigenvalues.shape[-1]:
        error = torch.maximum(error, eigenvalues[..., -rank - 1].clamp(min=0))
    return error


def wishart(
    shape: Sequence[int],
    rank: int,
    generator: torch.Generator | None,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
) -> Tensor:
    """Wishart matrices with ``rank`` degrees of freedom, divided by it."""
    dtype = dtype or torch.get_default_dtype()
    normal = torch.randn(
        (*shape[:-1], rank), generator=generator, dtype=working_dtype(dtype), device=device
    )
    return symmetric_part(normal @ normal.mT / rank).to(dtype)
