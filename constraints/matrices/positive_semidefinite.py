"""Positive semidefinite matrices, of full or bounded rank."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from constrained import register
from constrained.constraint.sampling import RandomNumbers
from constrained.torch_internals import linalg
from constraints.bases.argument_checks import Count, checked_rank
from constraints.bases.boundary import relax_to_boundary
from constraints.bases.expected_failures import failing, no_derivative
from constraints.bases.retraction import Retraction
from constraints.bases.shapes import SquareMatrices, too_small
from constraints.math.full_rank import raised_by
from constraints.math.leading_eigenvalues import distance_from_psd_rank, leading_eigenvalues
from constraints.math.matrix import symmetric_part
from constraints.math.psd_part import distance_from_psd, least_eigenvalue, psd_part
from constraints.math.rank_tangent import psd_rank_tangent

_KINK = "a kink on the boundary of the cone: the identity inside, a projection outside"


@register("positive_semidefinite", aliases=("psd", "symmetric_positive_semidefinite"))
class PositiveSemidefinite(SquareMatrices, Retraction):
    r"""Symmetric matrices without negative eigenvalues.

    **Use**: convex problems whose solution may be singular: semidefinite relaxations, metric
    learning, kernels and covariances estimated with few samples.

    **Set**: $\{W \in \mathbb{R}^{n \times n} : W = W^\top, x^\top W x \ge 0 \text{ for all } x\}$.
    Dimension $n (n + 1) / 2$, a closed convex cone.

    **Map**: the nearest member: the symmetric part, $(X + X^\top) / 2$, with negative eigenvalues
    replaced by zero. Onto the set. A member is returned bit for bit. There the derivative is the
    symmetric part, even on the boundary and at zero. The usual map, $X \mapsto X X^\top$, has the
    derivative zero at zero, and at a singular matrix no component of its derivative leads to a
    higher rank, so that training cannot leave that rank.

    **Right inverse**: the identity.

    **Reference**: Higham, Computing a nearest symmetric positive semidefinite matrix (Linear
    Algebra and its Applications 103, 1988).

    `project` is the nearest point in the Frobenius norm. `canonical` moves a parameter that a step
    has led outside back to the boundary little by little: see
    `constraints.bases.boundary.relax_to_boundary`.

    Example:
        >>> psd = PositiveSemidefinite()
        >>> psd(torch.tensor([[1.0, 2.0], [2.0, 1.0]]))
        tensor([[1.5000, 1.5000],
                [1.5000, 1.5000]])
        >>> psd.violation(torch.tensor([[1.0, 2.0], [2.0, 1.0]]))
        tensor(1.)
    """

    examples = (({}, (1, 1)), ({}, (2, 2)), ({}, (5, 5)))
    expected_failures = no_derivative(_KINK, "zero_params", "zeros", "ones", "boundary")

    def forward(self, X: Tensor) -> Tensor:
        """The nearest member."""
        return psd_part(symmetric_part(X))

    def canonical(self, X: Tensor) -> tuple[Tensor]:
        """A parameter of the same element that is nearer to it.

        Where no eigenvalue is positive, the element is 0 up to rounding and the derivative of the
        map vanishes. There the parameter becomes the element at once.
        """
        with torch.no_grad():
            X = symmetric_part(X)
            member = self.forward(X)
            rounding = 64 * X.shape[-1] * torch.finfo(X.dtype).eps
            most, size = (Y.abs().amax((-2, -1), keepdim=True) for Y in (member, X))
            return (torch.where(most <= rounding * size, member, relax_to_boundary(X, member, 2)),)

    def violation(self, value: Tensor) -> Tensor:
        """The larger of two distances: from symmetry, and of the least eigenvalue from 0."""
        return distance_from_psd(value)

    def slack(self, value: Tensor) -> Tensor:
        """The least eigenvalue."""
        return least_eigenvalue(value)

    def draw(self, shape: tuple[int, ...], random: RandomNumbers) -> Tensor:
        """Wishart matrices with n degrees of freedom, divided by n: of mean I."""
        normal = random.normal(shape)
        return symmetric_part(normal @ normal.mT / shape[-1])

    def dimension(self, shape: Sequence[int]) -> int:
        """``n (n + 1) / 2``."""
        return shape[-1] * (shape[-1] + 1) // 2


class PSDOfRank(SquareMatrices):
    """What sets of positive semidefinite matrices of a given rank share, or of a largest rank."""

    def __init__(self, rank: Count) -> None:
        super().__init__()
        self.rank = checked_rank(type(self).name or type(self).__name__, rank)

    def admissible(self, value: Tensor, gradient: Tensor) -> Tensor:
        """Minus the projection of ``-gradient``: tangent cones lack some opposites."""
        return -self.tangent(value, -gradient)

    def violation(self, value: Tensor) -> Tensor:
        """The largest of three: asymmetry, negative eigenvalues, and positive ones but r."""
        return distance_from_psd_rank(value, self.rank)

    def draw(self, shape: tuple[int, ...], random: RandomNumbers) -> Tensor:
        """Wishart matrices with r degrees of freedom, divided by r: of mean I."""
        normal = random.normal((*shape[:-1], self.rank))
        return symmetric_part(normal @ normal.mT / self.rank)

    def dimension(self, shape: Sequence[int]) -> int:
        """``n r - r (r - 1) / 2``."""
        return shape[-1] * self.rank - self.rank * (self.rank - 1) // 2

    def shape_problem(self, event: tuple[int, ...]) -> str | None:
        """An element is a square matrix of at least r rows."""
        return super().shape_problem(event) or too_small(event, self.rank)


@register("psd_low_rank", aliases=("positive_semidefinite_low_rank",))
class PSDLowRank(PSDOfRank):
    r"""Positive semidefinite matrices of at most a given rank.

    **Use**: covariances and kernels with at most $r$ factors, low-rank metric learning,
    semidefinite programs in the manner of Burer and Monteiro.

    **Set**: $\{W \in \mathbb{R}^{n \times n} : W = W^\top, x^\top W x \ge 0 \text{ for all } x,
    \operatorname{rank} W \le r\}$. Dimension $n r - r (r - 1) / 2$, closed, not convex for $r < n$;
    the matrices of lower rank are singular points.

    **Map**: $(Y, S) \mapsto Y S_+ Y^\top$, with $Y$ of shape $(n, r)$ and $S_+$ the positive
    semidefinite part of $S$, of shape $(r, r)$, as for `PositiveSemidefinite`. Onto the set.

    **Right inverse**: $S = I$, and eigenvectors times roots of the $r$ largest eigenvalues. Where
    an eigenvalue is zero, the derivative of the usual map, $Y \mapsto Y Y^\top$ alone, would
    vanish. There, $Y$ has a column as long as the longest one, along some vector of the kernel, and
    $S$ has the zero. So the zero matrix gives orthonormal columns and $S = 0$. A perturbation of
    one unit in the last place, the same in every run, is added to $Y$. Without it, a column that is
    also an eigenvector of the gradient would never turn, and rounding would decide whether training
    leaves the point.

    **Reference**: Journee, Bach, Absil and Sepulchre, Low-rank optimization on the cone of positive
    semidefinite matrices (SIAM Journal on Optimization 20, 2010); Levin, Kileel and Boumal, The
    effect of smooth parametrizations on nonconvex optimization landscapes (Mathematical Programming
    209, 2025): second-order critical points in $Y$ are critical points on the set.

    `canonical` moves $S$ into $Y$. An eigenvalue that a step has made negative becomes a few units
    in the last place, and its column of $Y$ is short but not zero. A short column turns as fast as
    a long one. With a zero eigenvalue in $S$ instead, the column would stay along an arbitrary
    vector of the kernel, though another vector might lower the loss. But a short column needs many
    steps to grow. So where $S$ has no positive eigenvalue, and its entries reach 1/2, $S$ becomes
    zero and $Y$ keeps its length: the next steps can lead back at once.

    Args:
        rank: the largest rank $r$, from 1 to $n$.

    Example:
        >>> psd = PSDLowRank(rank=1)
        >>> W = psd.project(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
        >>> torch.allclose(W, torch.tensor([[3.0, 0.0], [0.0, 0.0]]))
        True
    """

    examples = (
        ({"rank": 1}, (1, 1)),
        ({"rank": 1}, (3, 3)),
        ({"rank": 2}, (5, 5)),
        ({"rank": 3}, (3, 3)),
    )
    expected_failures = {  # noqa: RUF012 - never changed
        **no_derivative(_KINK, "zeros", "ones", "boundary"),
        **failing(
            "matrices of rank below r are singular points of the set, where no tangent space of "
            "its dimension exists; some direction has a gradient there",
            *("no_dead_directions:zeros", "no_dead_directions:ones", "flat_members_are_told"),
            *(f"tangent_is_a_projection:{point}" for point in ("zeros", "ones", "boundary")),
        ),
    }

    def forward(self, Y: Tensor, S: Tensor) -> Tensor:
        """``Y S_+ Y'``."""
        return symmetric_part(Y @ psd_part(symmetric_part(S)) @ Y.mT)

    def right_inverse(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """``(Y, S)`` with a diagonal S: 0 for eigenvalues that are zero, 1 for the others."""
        eigenvalues, Q = leading_eigenvalues(value, self.rank)
        eigenvalues = eigenvalues.clamp(min=0)
        largest = eigenvalues[..., :1]
        rounding = torch.finfo(value.dtype).eps * value.shape[-1] * largest
        stand_in = torch.where(largest > 0, largest, 1)
        square = torch.where(eigenvalues > rounding, eigenvalues, stand_in)
        Y = Q * square.sqrt().unsqueeze(-2)
        return Y + _unsymmetric(Y), torch.diag_embed(eigenvalues / square)

    def canonical(self, Y: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
        """``(Y L, I)`` with ``L L' = S_+`` where S_+ is regular; else ``(Y, S_+)``."""
        with torch.no_grad():
            S, before = psd_part(symmetric_part(S)), S
            rounding = 64 * self.rank * torch.finfo(S.dtype).eps
            most, size = (X.abs().amax((-2, -1), keepdim=True) for X in (S, before))
            S = S.masked_fill((most <= rounding * size) & (size >= 0.5), 0)
            L, info = linalg.cholesky_ex(S)
            regular = (info == 0)[..., None, None]
            identity = torch.eye(self.rank, dtype=S.dtype, device=S.device)
            return torch.where(regular, Y @ L, Y), torch.where(regular, identity, S)

    def tangent(self, value: Tensor, vector: Tensor) -> Tensor:
        """The projection onto the tangent space, or onto the tangent cone if the rank is lower."""
        return psd_rank_tangent(value, vector, self.rank)

    def project(self, value: Tensor) -> Tensor:
        """A nearest point in the Frobenius norm: the r largest eigenvalues, if positive."""
        eigenvalues, Q = leading_eigenvalues(value, self.rank)
        return symmetric_part((Q * eigenvalues.clamp(min=0).unsqueeze(-2)) @ Q.mT)

    def admit(self, value: Tensor, share: float) -> Tensor:
        """The nearest point, with r eigenvalues raised so that every direction has a gradient."""
        eigenvalues, Q = leading_eigenvalues(value, self.rank)
        # The derivative along A has the size of the eigenvalues, not of their roots.
        raised = raised_by(eigenvalues, value, share**0.5).unsqueeze(-2)
        return symmetric_part((Q * raised) @ Q.mT)


def _unsymmetric(Y: Tensor) -> Tensor:
    """A perturbation of Y by one unit in the last place that has no symmetry."""
    n, r = (torch.arange(1, size + 1, dtype=Y.dtype, device=Y.device) for size in Y.shape[-2:])
    pattern = torch.cos(n.unsqueeze(-1) * r + n.unsqueeze(-1))
    return torch.finfo(Y.dtype).eps * Y.abs().amax((-2, -1), keepdim=True) * pattern
