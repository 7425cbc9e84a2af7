"""Positive semidefinite matrices, of full or bounded rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from constrained import Constraint, register
from constrained.tolerance import working_dtype
from constraints.bounds import checked_rank
from constraints.fixed_rank import beyond, leading, too_small, wishart
from constraints.fold import lingering
from constraints.full_rank import raised_by
from constraints.linear_space import not_square
from constraints.polar import polar
from constraints.psd_part import distance_from_psd, psd_part, symmetric_part

_KINK = "a kink on the boundary of the cone: the identity inside, a projection outside"


def _kinks(*points: str) -> dict[str, str]:
    orders = ("first", "second")
    return dict.fromkeys([f"{o}_derivative:{point}" for o in orders for point in points], _KINK)


@register("positive_semidefinite", aliases=("psd", "symmetric_positive_semidefinite"))
class PositiveSemidefinite(Constraint):
    """Symmetric matrices without negative eigenvalues.

    **Set**: {W in R^(n x n) : W = W', x'Wx >= 0 for all x}. Dimension n (n + 1) / 2, a closed
    convex cone.

    **Map**: the nearest member: the symmetric part, with negative eigenvalues replaced by zero.
    Onto the set. A member comes back bit for bit, with the symmetric part as its derivative, on the
    boundary and at zero too. X X', the usual map, has no derivative at zero, and at a singular
    matrix none that leads to a higher rank: training from there never gets away.

    **Right inverse**: the identity.

    **Reference**: Higham, Computing a nearest symmetric positive semidefinite matrix (Linear
    Algebra and its Applications 103, 1988).

    `canonical` takes a parameter that a step has led outside back to the boundary, little by
    little: see `constraints.fold.lingering`.

    Example:
        >>> psd = PositiveSemidefinite()
        >>> psd(torch.tensor([[1.0, 2.0], [2.0, 1.0]]))
        tensor([[1.5000, 1.5000],
                [1.5000, 1.5000]])
        >>> psd.violation(torch.tensor([[1.0, 2.0], [2.0, 1.0]]))
        tensor(1.)
    """

    event_dim = 2
    examples = (({}, (1, 1)), ({}, (2, 2)), ({}, (5, 5)))
    exempt = _kinks("zero_params", "zeros", "ones", "boundary")

    def forward(self, X: Tensor) -> Tensor:
        """The nearest member."""
        return psd_part(symmetric_part(X))

    def right_inverse(self, value: Tensor) -> Tensor:
        """The identity."""
        return value

    def canonical(self, X: Tensor) -> tuple[Tensor]:
        """A parameter of the same element that is nearer to it."""
        with torch.no_grad():
            return (lingering(symmetric_part(X), self.forward(X), 2),)

    def violation(self, value: Tensor) -> Tensor:
        """The larger of two distances: from symmetry, and of the least eigenvalue from 0."""
        return distance_from_psd(value)

    def project(self, value: Tensor) -> Tensor:
        """The nearest point in the Frobenius norm."""
        return psd_part(symmetric_part(value))

    def sample(
        self,
        shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Wishart matrices with n degrees of freedom, divided by n: of mean I."""
        self.check_shape(shape)
        dtype = dtype or torch.get_default_dtype()
        normal = torch.randn(
            tuple(shape), generator=generator, dtype=working_dtype(dtype), device=device
        )
        return symmetric_part(normal @ normal.mT / shape[-1]).to(dtype)

    def dimension(self, shape: Sequence[int]) -> int:
        """``n (n + 1) / 2``."""
        return shape[-1] * (shape[-1] + 1) // 2

    def shape_problem(self, event: tuple[int, ...]) -> str | None:
        """An element is a square matrix."""
        return not_square(event)


@register("psd_low_rank", aliases=("positive_semidefinite_low_rank",))
class PSDLowRank(Constraint):
    """Positive semidefinite matrices of at most a given rank.

    **Set**: {W in R^(n x n) : W = W', x'Wx >= 0 for all x, rank(W) <= r}. Dimension
    n r - r (r - 1) / 2, closed, not convex for r < n; the matrices of lower rank are singular
    points.

    **Map**: (A, S) -> U S_+ U', with U the orthonormal polar factor of A (n, r) and S_+ the
    positive semidefinite part of S (r, r), as under `PositiveSemidefinite`. Onto the set. Y Y', the
    usual map, has no derivative at zero.

    **Right inverse**: the r leading eigenvectors, and the diagonal matrix of their eigenvalues.

    **Reference**: Journee, Bach, Absil and Sepulchre, Low-rank optimization on the cone of positive
    semidefinite matrices (SIAM Journal on Optimization 20, 2010).

    `canonical` restores A = U, and takes S back to the boundary, little by little: see
    `constraints.fold.lingering`.

    Args:
        rank: the largest rank r, from 1 to n.

    Example:
        >>> psd = PSDLowRank(rank=1)
        >>> W = psd.project(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
        >>> torch.allclose(W, torch.tensor([[3.0, 0.0], [0.0, 0.0]]))
        True
    """

    event_dim = 2
    examples = (
        ({"rank": 1}, (1, 1)),
        ({"rank": 1}, (3, 3)),
        ({"rank": 2}, (5, 5)),
        ({"rank": 3}, (3, 3)),
    )
    exempt: ClassVar[dict[str, str]] = {
        **_kinks("zero_params", "zeros", "ones", "boundary"),
        **dict.fromkeys(
            ("no_dead_directions:zeros", "no_dead_directions:ones", "flat_members_are_told"),
            "matrices of rank below r are singular points of the set, where no tangent space of "
            "its dimension exists; some direction is live there",
        ),
    }

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = checked_rank("psd_low_rank", rank)

    def forward(self, A: Tensor, S: Tensor) -> Tensor:
        """``U S_+ U'``."""
        U = polar(A)
        return symmetric_part(U @ psd_part(symmetric_part(S)) @ U.mT)

    def right_inverse(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """The leading eigenvectors, and the diagonal matrix of their eigenvalues."""
        eigenvalues, Q = leading(value, self.rank)
        return Q, torch.diag_embed(eigenvalues.clamp(min=0))

    def canonical(self, A: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
        """The same with A orthonormal, and S nearer to its positive semidefinite part."""
        with torch.no_grad():
            S = symmetric_part(S)
            return polar(A), lingering(S, psd_part(S), 2)

    def violation(self, value: Tensor) -> Tensor:
        """The largest of three: asymmetry, negative eigenvalues, and positive ones but r."""
        return beyond(value, self.rank)

    def project(self, value: Tensor) -> Tensor:
        """A nearest point in the Frobenius norm, of the r largest eigenvalues if positive."""
        eigenvalues, Q = leading(value, self.rank)
        return symmetric_part((Q * eigenvalues.clamp(min=0).unsqueeze(-2)) @ Q.mT)

    def admit(self, value: Tensor, share: float) -> Tensor:
        """The nearest point, with r eigenvalues that are large enough to move all directions."""
        eigenvalues, Q = leading(value, self.rank)
        # The derivative along A has the size of the eigenvalues, not of their roots.
        raised = raised_by(eigenvalues, value, share**0.5).unsqueeze(-2)
        return symmetric_part((Q * raised) @ Q.mT)

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
