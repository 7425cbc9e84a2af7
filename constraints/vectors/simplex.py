"""Vectors of probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from constrained import Constraint, register
from constrained.constraint.tolerance import working_dtype
from constraints.math.logits import inner


@register("simplex", aliases=("probability_simplex",))
class Simplex(Constraint):
    """Vectors of nonnegative numbers that add up to one.

    **Set**: {x in R^n : x_i >= 0, sum_i x_i = 1}. Dimension n - 1, closed.

    **Map**: softmax, onto the interior: a zero is reached by underflow alone.

    **Right inverse**: x -> log(x). A zero is taken for eps / n, which changes x by less than its
    rounding and leaves a gradient; the logarithm of the smallest positive number would not.

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

    event_dim = 1
    examples = (({}, (1,)), ({}, (2,)), ({}, (5,)), ({}, (100,)))
    expected_failures: ClassVar[dict[str, str]] = {
        "no_dead_directions:boundary": "the boundary is the limit of softmax at infinity: its "
        "derivative there is as small as the smallest entries"
    }

    def forward(self, y: Tensor) -> Tensor:
        """``exp(y_i) / sum_j exp(y_j)``."""
        share = torch.softmax(y, -1)
        # torch adds up one entry after the other: 10,000 of them miss the sum 1 by 20 eps.
        return share / share.sum(-1, keepdim=True).detach()

    def right_inverse(self, value: Tensor) -> Tensor:
        """``log(x)``."""
        # Not centred: log(x) of the large entries is small, hence precise. Subtracting a mean that
        # the logarithms of the small entries dominate would blur them.
        finfo = torch.finfo(value.dtype)
        positive = torch.where(value > 0, value, finfo.eps / value.shape[-1])
        return torch.log(positive.clamp(min=finfo.tiny))

    def violation(self, value: Tensor) -> Tensor:
        """The larger of two distances: of a negative entry from 0, and of the sum from 1.

        The second one is the change of the largest entry when the vector is divided by its sum.
        """
        largest = value.detach().abs().amax(-1).clamp(1 / value.shape[-1], 1)
        return torch.maximum(F.relu(-value).amax(-1), (value.sum(-1) - 1).abs() * largest)

    def project(self, value: Tensor) -> Tensor:
        r"""The nearest point in the Euclidean norm.

        It is ``max(x - t, 0)`` with the one t for which the entries add up to 1. Every set K of k
        entries has ``sum_K (x_i - t) <= sum_i max(x_i - t, 0) = 1``, with equality where K holds
        the entries above t, which are the k largest. So

        .. math:: t = \max_k \frac{x_{(1)} + \dots + x_{(k)} - 1}{k}.
        """
        # A shift of all entries shifts t, and entries more than 1 below the largest one end at 0:
        # numbers between -1 and 0 do not lose the 1 beside a large x.
        shifted = (value - value.amax(-1, keepdim=True)).clamp(min=-1)
        count = torch.arange(1, value.shape[-1] + 1, dtype=value.dtype, device=value.device)
        descending = shifted.sort(-1, descending=True).values
        threshold = ((descending.cumsum(-1) - 1) / count).amax(-1, keepdim=True)
        # The running sum has lost digits by then: one Newton step on the sum of the entries.
        above = F.relu(shifted - threshold)
        excess = (above.sum(-1, keepdim=True) - 1) / (above > 0).sum(-1, keepdim=True)
        nearest = F.relu(shifted - (threshold + excess))
        return nearest / nearest.sum(-1, keepdim=True)

    def inwards(self, value: Tensor, share: float) -> Tensor:
        """Vectors whose least entry is ``share`` of the mean entry; the others are scaled down."""
        return inner(value, share)

    def sample(
        self,
        shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Vectors uniform on the simplex: Dirichlet(1, ..., 1)."""
        self.check_shape(shape)
        dtype = dtype or torch.get_default_dtype()
        exponential = torch.empty(tuple(shape), dtype=working_dtype(dtype), device=device)
        exponential.exponential_(generator=generator).clamp_(
            min=torch.finfo(exponential.dtype).tiny
        )
        return (exponential / exponential.sum(-1, keepdim=True)).to(dtype)

    def dimension(self, shape: Sequence[int]) -> int:
        """``n - 1``."""
        return shape[-1] - 1

    def shape_problem(self, event: tuple[int, ...]) -> str | None:
        """An element has at least one entry."""
        return None if event[0] > 0 else "must have at least one entry"
