"""Matrices of bounded rank, as a product of two thin factors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from constrained import Constraint, register
from constrained.constraint.sampling import RandomNumbers
from constrained.torch_internals import linalg
from constraints.bases.argument_checks import Count, checked_rank
from constraints.bases.expected_failures import failing
from constraints.bases.shapes import Matrices, thinner_than
from constraints.math.autograd import goes_by_operator
from constraints.math.full_rank import raised_by
from constraints.math.nearest_of_rank import nearest_of_rank
from constraints.math.rank_tangent import rank_tangent
from constraints.math.svd import svd, svdvals
from constraints.math.thin_product import thin_product


class OfRank(Constraint):
    """What sets of matrices of a given rank share, or of a largest rank: two thin factors."""

    event_dim = 2

    def __init__(self, rank: Count) -> None:
        super().__init__()
        self.rank = checked_rank(type(self).name or type(self).__name__, rank)

    def draw(self, shape: tuple[int, ...], random: RandomNumbers) -> Tensor:
        """The product of two standard normal factors, divided by sqrt(r): entries of variance 1."""
        *batch, m, n = shape
        factors = random.normal((*batch, m + n, self.rank))
        return factors[..., :m, :] @ factors[..., m:, :].mT / self.rank**0.5

    def dimension(self, shape: Sequence[int]) -> int:
        """``r (m + n - r)``."""
        return self.rank * (shape[-2] + shape[-1] - self.rank)

    def shape_problem(self, event: tuple[int, ...]) -> str | None:
        """Both sides of the matrix are at least the rank."""
        return thinner_than(event, self.rank)


class BoundedRank(Constraint):
    """Base of sets of matrices of bounded rank, which are products of two balanced factors.

    Attributes:
        rank: the largest rank.
    """

    event_dim = 2
    rank: int

    def violation(self, value: Tensor) -> Tensor:
        """The distance in the spectral norm, which is the singular value number r + 1."""
        if self.rank >= min(value.shape[-2:]):
            return value.new_zeros(value.shape[:-2])
        return svdvals(value)[..., self.rank]

    def tangent(self, value: Tensor, vector: Tensor) -> Tensor:
        """The projection onto the tangent space, or onto the tangent cone if the rank is lower.

        From the zero matrix, for one, training goes on along the leading part of the vector.
        """
        return rank_tangent(value, vector, self.rank)

    def project(self, value: Tensor) -> Tensor:
        """A nearest point in every unitarily invariant norm: the truncated decomposition."""
        left, right, _ = _leading(value, self.rank)
        return left @ right.mT

    def nearby(self, value: Tensor) -> Tensor:
        """The nearest point, with a derivative where the dropped singular values repeat."""
        return nearest_of_rank(value, self.rank)

    def admit(self, value: Tensor, share: float) -> Tensor:
        """The nearest point, with small singular values raised so that both factors can train."""
        left, right, sigma = _leading(value, self.rank)
        larger = raised_by(sigma, value, share) / torch.where(sigma > 0, sigma, 1)
        return left * larger.unsqueeze(-2) @ right.mT


@register("low_rank")
class LowRank(OfRank, BoundedRank):
    r"""Matrices of at most a given rank.

    **Use**: compressed layers with few parameters: low-rank adapters (LoRA), matrix completion,
    embeddings and attention of small rank.

    **Set**: $\{W \in \mathbb{R}^{m \times n} : \operatorname{rank} W \le r\}$. Dimension
    $r (m + n - r)$, closed. It is not a manifold but a variety, whose singular points are the
    matrices of smaller rank.

    **Map**: $(U, V) \mapsto U V^\top$ with $U$ of shape $(m, r)$ and $V$ of shape $(n, r)$, onto
    the set.

    **Right inverse**: the balanced factors of the singular value decomposition, with
    $U^\top U = V^\top V = \operatorname{diag}(\sigma)$. Where a singular value is zero, both
    columns would be zero and have no gradient. There, only the column of $V$ is zero, and $U$ has a
    column as long as the longest one, orthogonal to the others. So the zero matrix gives
    orthonormal columns and $V = 0$, from where the first step is that of an unconstrained $W$,
    projected onto the columns of $U$.

    **Reference**: Eckart and Young, The approximation of one matrix by another of lower rank
    (Psychometrika 1, 1936), for the projection; Ge, Jin and Zheng, No spurious local minima in
    nonconvex low rank problems (ICML 2017), for balanced factors.

    Args:
        rank: the largest rank $r$, from 1 to $\min(m, n)$.

    Example:
        >>> low_rank = LowRank(rank=1)
        >>> low_rank(torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [4.0], [5.0]])).round()
        tensor([[ 3.,  4.,  5.],
                [ 6.,  8., 10.]])
        >>> U, V = low_rank.right_inverse(torch.zeros(4, 3))
        >>> U.norm(), V.norm()
        (tensor(1.), tensor(0.))
    """

    examples = (
        ({"rank": 1}, (2, 2)),
        ({"rank": 2}, (7, 3)),
        ({"rank": 2}, (3, 6)),
        ({"rank": 3}, (4, 4)),
    )
    expected_failures = failing(
        "matrices of rank below r are singular points of the variety, where no tangent space of "
        "its dimension exists; some direction has a gradient there",
        *("no_dead_directions:zeros", "no_dead_directions:ones", "flat_members_are_told"),
        *("tangent_is_a_projection:zeros", "tangent_is_a_projection:ones"),
    )

    def forward(self, U: Tensor, V: Tensor) -> Tensor:
        """``U V'``."""
        if goes_by_operator():
            # An exported model has the plain product, which every runtime supports.
            return U @ V.mT
        with torch.no_grad():
            bases = linalg.qr(U).Q, linalg.qr(V).Q
        return thin_product(U, V, *bases)

    def factors(self, U: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
        """``U`` and ``V'``."""
        return U, V.mT

    def pullback(self, value: Tensor, gradient: Tensor, *params: Tensor) -> tuple[Tensor, Tensor]:
        """``G V`` and ``G' U``."""
        U, V = params
        return gradient @ V, gradient.mT @ U

    def right_inverse(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Balanced factors."""
        return _factors(value, self.rank)


@register("rank_one")
class RankOne(Matrices, BoundedRank):
    r"""Outer products of two vectors.

    **Use**: gates of rows and columns, separable filters, attention sinks and other weights that
    are an outer product.

    **Set**: $\{x y^\top : x \in \mathbb{R}^m, y \in \mathbb{R}^n\}$, the matrices of rank 0 or 1.
    Dimension $m + n - 1$, closed; a manifold except at the zero matrix.

    **Map**: $(x, y) \mapsto x y^\top$, onto the set, from two parameters of shapes ``(*batch, m)``,
    ``(*batch, n)``.

    **Right inverse**: vectors of equal length, from the singular value decomposition. For the zero
    matrix $x$ is a unit vector and $y$ is zero, so that the gradient does not vanish.

    **Reference**: as for `LowRank`, of which it is the case of rank 1.

    Example:
        >>> rank_one = RankOne()
        >>> rank_one(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0, 5.0]))
        tensor([[ 3.,  4.,  5.],
                [ 6.,  8., 10.]])
    """

    rank = 1
    examples = (({}, (2, 2)), ({}, (5, 3)), ({}, (2, 6)))
    expected_failures = failing(
        "the zero matrix is the singular point of the set, where no tangent space of its dimension "
        "exists; some direction has a gradient there",
        *("no_dead_directions:zeros", "flat_members_are_told", "tangent_is_a_projection:zeros"),
    )

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """``x y'``."""
        return x.unsqueeze(-1) * y.unsqueeze(-2)

    def factors(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """``x`` as a column and ``y`` as a row."""
        return x.unsqueeze(-1), y.unsqueeze(-2)

    def pullback(self, value: Tensor, gradient: Tensor, *params: Tensor) -> tuple[Tensor, Tensor]:
        """``G y`` and ``G' x``."""
        x, y = (t.unsqueeze(-1) for t in params)
        return (gradient @ y).squeeze(-1), (gradient.mT @ x).squeeze(-1)

    def right_inverse(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Two vectors of equal length."""
        U, V = _factors(value, 1)
        return U.squeeze(-1), V.squeeze(-1)

    def draw(self, shape: tuple[int, ...], random: RandomNumbers) -> Tensor:
        """The outer product of two standard normal vectors."""
        *batch, m, n = shape
        vectors = random.normal((*batch, m + n))
        return self.forward(vectors[..., :m], vectors[..., m:])

    def dimension(self, shape: Sequence[int]) -> int:
        """``m + n - 1``."""
        return shape[-2] + shape[-1] - 1


def _factors(value: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    left, right, sigma = _leading(value, rank)
    largest = sigma[..., :1]
    rounding = torch.finfo(value.dtype).eps * max(value.shape[-2:]) * largest
    stand_in = torch.where(largest > 0, largest, 1.0)
    length = torch.where(sigma > rounding, sigma, stand_in).sqrt().unsqueeze(-2)
    # LAPACK returns column-major tensors, which some optimizers cannot work on.
    return (left * length).contiguous(), (right / length).contiguous()


def _leading(value: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """``(P, Q S, s)`` for the leading singular values s; if there are no others, ``W = P (Q S)'``.

    Q S is computed as ``W' P``, which avoids the errors of Q and s. P P' W still differs from W by
    the error of P, a few times that of a matrix product. One more product corrects that.
    """
    left, sigma, _ = svd(value)
    left = left[..., :rank]
    right = value.mT @ left
    right = right + (value - left @ right.mT).mT @ left
    return left, right, sigma[..., :rank]
