"""Doubly stochastic matrices: nonnegative, with rows and columns that add up to one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from constrained import register
from constrained.constraint.base import FLAT
from constrained.constraint.sampling import RandomNumbers
from constraints.bases.argument_checks import PositiveNumber, checked_positive
from constraints.bases.expected_failures import failing
from constraints.bases.shapes import SquareMatrices
from constraints.math.birkhoff import nearest_doubly_stochastic
from constraints.math.logits import logits
from constraints.math.sinkhorn import sinkhorn


class BirkhoffPolytope(SquareMatrices):
    """Base of constraints to doubly stochastic matrices, which differ in their coordinates."""

    expected_failures = failing(
        "the boundary is the limit of the map at infinity: its derivative there is as small as the "
        "smallest entries",
        "no_dead_directions",
        at=("eye", "repeated", "boundary"),
    )

    def violation(self, value: Tensor) -> Tensor:
        """The larger of two distances: of a negative entry from 0, and of a sum from 1.

        The second one is the change of the largest entry of the row or column when it is divided by
        its sum.
        """
        errors = [F.relu(-value).amax((-2, -1))]
        for dim in (-1, -2):
            largest = value.detach().abs().amax(dim).clamp(1 / value.shape[-1], 1)
            errors.append(((value.sum(dim) - 1).abs() * largest).amax(-1))
        return torch.stack(errors).amax(0)

    def slack(self, value: Tensor) -> Tensor:
        """The least entry."""
        return value.amin((-2, -1))

    def project(self, value: Tensor) -> Tensor:
        """The nearest point in the Frobenius norm."""
        return nearest_doubly_stochastic(value)

    def inwards(self, value: Tensor, share: float) -> Tensor:
        """Matrices with an entry below ``share / n`` are mixed with the matrix of 1 / n."""
        mean = 1 / value.shape[-1]
        small = (value < share * mean).any(-1, keepdim=True).any(-2, keepdim=True)
        mixed = (value.clamp(min=0) + 2 * share * mean) / (1 + 2 * share)
        return torch.where(small, mixed, value)

    def dimension(self, shape: Sequence[int]) -> int:
        """``(n - 1)^2``."""
        return (shape[-1] - 1) ** 2


@register("doubly_stochastic", aliases=("birkhoff", "birkhoff_polytope", "bistochastic"))
class DoublyStochastic(BirkhoffPolytope):
    r"""Doubly stochastic matrices, the convex hull of the permutation matrices.

    **Use**: soft assignments and mixing that keeps the mean: hyper-connections, attention and token
    mixing whose rows and columns sum to one, transport plans with equal weights.

    **Set**: $\{W \in \mathbb{R}^{n \times n} : W_{ij} \ge 0, \sum_j W_{ij} = 1, \sum_i W_{ij} =
    1\}$, the Birkhoff polytope. Dimension $(n - 1)^2$, closed.

    **Map**: $X \mapsto \operatorname{diag}(u) \exp(X) \operatorname{diag}(v)$, with the exponential
    of each entry and the $u, v > 0$ that make the sums 1, onto the interior. The iteration runs
    until they are 1 up to rounding. (After 20 rounds the errors would still be 0.07 for logits of
    spread 10.) Derivatives are those of the limit, by implicit differentiation.

    **Right inverse**: $W \mapsto \log W$, entry by entry. A zero is replaced by $\varepsilon / n$,
    which changes $W$ by less than its rounding. At a permutation matrix gradients are as small as
    that. In single precision Adam can leave it; in double precision Adam's own epsilon ($10^{-8}$)
    must be lowered for that.

    **Reference**: Sinkhorn and Knopp, Concerning nonnegative matrices and doubly stochastic
    matrices (Pacific Journal of Mathematics 21, 1967); Li, Sun and Toh, On the efficient
    computation of a projector over the Birkhoff polytope (Mathematical Programming 179, 2020).

    Shape:
        ``(*batch, n, n)``.

    Example:
        >>> DoublyStochastic()(torch.tensor([[9.0, 9.0], [3.0, 3.0]]))
        tensor([[0.5000, 0.5000],
                [0.5000, 0.5000]])
    """

    examples = (({}, (1, 1)), ({}, (2, 2)), ({}, (5, 5)))

    def forward(self, X: Tensor) -> Tensor:
        """The scaling of ``exp(X)``."""
        return sinkhorn(X)

    def right_inverse(self, value: Tensor) -> Tensor:
        """``log(W)``."""
        return logits(value)

    def draw(self, shape: tuple[int, ...], random: RandomNumbers) -> Tensor:
        """The scaling of matrices of independent exponentially distributed entries."""
        return sinkhorn(random.exponential(shape).log())


@register("soft_permutation", aliases=("gumbel_sinkhorn",))
class SoftPermutation(BirkhoffPolytope):
    r"""Doubly stochastic matrices, in coordinates in which most are close to a permutation.

    **Use**: learned orders and matchings: sorting, alignment of points and channels, latent
    permutations that are hardened by and by.

    **Set**: $\{W \in \mathbb{R}^{n \times n} : W_{ij} \ge 0, \sum_j W_{ij} = 1, \sum_i W_{ij} =
    1\}$, that of `DoublyStochastic`, whatever the temperature $\tau$. Dimension $(n - 1)^2$,
    closed. Permutation matrices are its vertices; a member need not be near one.

    **Map**: $X \mapsto \operatorname{diag}(u) \exp(X / \tau) \operatorname{diag}(v)$, the doubly
    stochastic scaling, onto the interior. For a small temperature, parameters of size one, such as
    weights of a network, give matrices near a permutation: in the limit the one that maximizes
    $\sum_i X_{i \pi(i)}$. Lowering the temperature during training hardens the matrix.

    **Right inverse**: $W \mapsto \tau \log W$, where a zero is replaced by $\varepsilon / n$.

    **Reference**: Mena, Belanger, Linderman and Snoek, Learning latent permutations with
    Gumbel-Sinkhorn networks (ICLR 2018); for the projection as for `DoublyStochastic`.

    Args:
        temperature: the divisor $\tau$ of the parameters, positive.

    Shape:
        ``(*batch, n, n)``.

    Raises:
        TypeError: if the temperature is not a number.
        ValueError: if the temperature is not positive and finite.

    Example:
        >>> SoftPermutation(temperature=0.1)(torch.tensor([[0.0, 1.0], [1.0, 1.0]])).round()
        tensor([[0., 1.],
                [1., 0.]])
    """

    examples = (
        ({"temperature": 1.0}, (1, 1)),
        ({"temperature": 1.0}, (3, 3)),
        ({"temperature": 0.5}, (3, 3)),
        ({"temperature": 0.1}, (4, 4)),
    )

    def __init__(self, temperature: PositiveNumber) -> None:
        super().__init__()
        self.temperature = checked_positive("soft_permutation", temperature, "temperature")
        if self.temperature < 1:
            flat = failing(
                "at a low temperature the map is flat around each permutation, as it is meant "
                "to be",
                "adam_reaches_the_optimum",
                "flat_members_are_told",
            )
            self.expected_failures = {**self.expected_failures, **flat}

    def forward(self, X: Tensor) -> Tensor:
        """The scaling of ``exp(X / temperature)``."""
        return sinkhorn(X / self.temperature)

    def right_inverse(self, value: Tensor) -> Tensor:
        """``temperature * log(W)``."""
        return self.temperature * logits(value)

    def flat(self, value: Tensor, share: float = FLAT) -> Tensor:
        """As in the base class, with a smaller ``share`` at a low temperature.

        There, most members are flat.
        """
        return super().flat(value, share ** max(1.0, 1 / self.temperature))

    def draw(self, shape: tuple[int, ...], random: RandomNumbers) -> Tensor:
        """The Gumbel-Sinkhorn distribution: ``forward`` of independent standard Gumbel numbers."""
        return sinkhorn(-random.exponential(shape).log() / self.temperature)
