"""Vectors of probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from constrained import register
from constrained.constraint.linear_form import LinearForm, equations
from constrained.constraint.sampling import RandomNumbers
from constraints.bases.expected_failures import failing
from constraints.bases.shapes import Vectors
from constraints.math.l1_projection import threshold_of
from constraints.math.logits import inner, logits, probabilities
from constraints.math.rows_in_place import onto_simplex_
from constraints.math.scaled_threshold import onto_scaled_simplex


@register("simplex", aliases=("probability_simplex",))
class Simplex(Vectors):
    r"""Vectors of nonnegative numbers that sum to one: weights and probabilities.

    **Use**: mixtures, ensembles, attention over a few choices, portfolios, convex combinations of
    layers.

    **Set**: $\{x \in \mathbb{R}^n : x_i \ge 0, \sum_i x_i = 1\}$. Dimension $n - 1$, closed.

    **Map**: softmax, $x_i = \exp(y_i) / \sum_j \exp(y_j)$, onto the interior. A zero can only
    result from underflow.

    **Right inverse**: $x \mapsto \log x$. A zero is replaced by $\varepsilon / n$, which changes
    $x$ by less than its rounding and leaves a gradient. With the smallest positive number the
    gradient would vanish.

    **Reference**: the projection is due to Held, Wolfe and Crowder, Validation of subgradient
    optimization (Mathematical Programming 6, 1974); Duchi et al., Efficient projections
    onto the l1-ball (ICML 2008), figure 1.

    Example:
        >>> simplex = Simplex()
        >>> simplex(torch.zeros(4))
        tensor([0.2500, 0.2500, 0.2500, 0.2500])
        >>> simplex.project(torch.tensor([2.0, 1.5, -1.0]))
        tensor([0.7500, 0.2500, 0.0000])
    """

    examples = (({}, (1,)), ({}, (2,)), ({}, (5,)), ({}, (100,)))
    expected_failures = failing(
        "the boundary is the limit of softmax at infinity: its derivative there is as small as the "
        "smallest entries",
        "no_dead_directions:boundary",
    )

    def forward(self, y: Tensor) -> Tensor:
        """``exp(y_i) / sum_j exp(y_j)``."""
        return probabilities(y)

    def right_inverse(self, value: Tensor) -> Tensor:
        """``log(x)``."""
        return logits(value)

    def violation(self, value: Tensor) -> Tensor:
        """The larger of two distances: of a negative entry from 0, and of the sum from 1.

        The second one is the change of the largest entry when the vector is divided by its sum.
        """
        largest = value.detach().abs().amax(-1).clamp(1 / value.shape[-1], 1)
        return torch.maximum(F.relu(-value).amax(-1), (value.sum(-1) - 1).abs() * largest)

    def slack(self, value: Tensor) -> Tensor:
        """The least entry."""
        return value.amin(-1)

    def project(self, value: Tensor) -> Tensor:
        r"""The nearest point in the Euclidean norm.

        It is ``max(x - t, 0)`` with the one t for which the entries add up to 1. Every set K of k
        entries has ``sum_K (x_i - t) <= sum_i max(x_i - t, 0) = 1``, with equality where K holds
        the entries above t, which are the k largest. So

        .. math:: t = \max_k \frac{x_{(1)} + \dots + x_{(k)} - 1}{k}.
        """
        # Shifting all entries shifts t as much, and entries more than 1 below the largest become 0.
        # So entries are shifted and clamped to between -1 and 0, where no digits of 1 are lost.
        shifted = (value - value.amax(-1, keepdim=True)).clamp(min=-1)
        nearest = F.relu(shifted - threshold_of(shifted, 1))
        return nearest / nearest.sum(-1, keepdim=True)

    def project_scaled(self, value: Tensor, scale: Tensor) -> Tensor:
        """``max(x - t / scale, 0)`` with the t for which the sum is 1."""
        return onto_scaled_simplex(value, scale, 1.0)

    def retract_(self, value: Tensor) -> None:
        """`project` in place, without sorting."""
        if not value.numel() or not onto_simplex_(value):
            value.copy_(self.project(value))

    def inwards(self, value: Tensor, share: float) -> Tensor:
        """Small entries raised to ``share`` of the mean entry, or a little above."""
        return inner(value, share)

    def linear_form(self, shape: Sequence[int]) -> LinearForm:
        """Entries of zero or more, and their sum."""
        return equations(torch.ones(1, shape[-1]), torch.ones(1), low=0.0)

    def draw(self, shape: tuple[int, ...], random: RandomNumbers) -> Tensor:
        """Vectors uniform on the simplex: Dirichlet(1, ..., 1)."""
        exponential = random.exponential(shape)
        return exponential / exponential.sum(-1, keepdim=True)

    def dimension(self, shape: Sequence[int]) -> int:
        """``n - 1``."""
        return shape[-1] - 1
