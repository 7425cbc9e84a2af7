"""Vectors whose entries do not decrease."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor

from constrained import register
from constrained.constraint.linear_form import Image, LinearForm
from constrained.constraint.sampling import RandomNumbers
from constraints.bases.argument_checks import checked_bound
from constraints.bases.boundary import STEEPNESS
from constraints.bases.expected_failures import no_derivative
from constraints.bases.shapes import Vectors
from constraints.math.isotonic import isotonic


class Increments(Vectors):
    """Base of the cones of ordered vectors, whose parameters are the increments.

    An increment of zero or more is taken as it is. A negative one is folded back, with the slope
    -1 / 2^20, and `canonical` replaces it by its value: see `constraints.bases.half_line`. In terms
    of the increments the set is a product of half-lines: each increment can stop at its bound and
    leave it again, independently of the others.

    Args:
        gap: the least difference of neighbours, zero or more. It shifts the cone: i times the gap
            is added to entry number i, counted from 0.
    """

    expected_failures = no_derivative(
        "a kink where two entries are equal, as every map from all of "
        "space onto the cone that leaves its boundary with a nonzero slope",
        *("zero_params", "zeros", "ones", "boundary"),
    )

    def __init__(self, gap: Annotated[float, Ge(0)] = 0.0) -> None:
        super().__init__()
        kind = type(self).name or type(self).__name__
        if checked_bound(kind, gap, "gap") < 0:
            raise ValueError(f"{kind}: gap must be zero or more, got {gap!r}.")
        self.gap = float(gap)

    @abstractmethod
    def free(self) -> int:
        """How many increments, counted from the first, may have either sign."""

    def forward(self, y: Tensor) -> Tensor:
        """The running sum of the increments."""
        return self._spread(self.canonical(y)[0].cumsum(-1))

    def right_inverse(self, value: Tensor) -> Tensor:
        """The increments."""
        value = self._spread(value, -1)
        # Negative increments by rounding would be folded, and these errors would add up.
        least = value if self.free() else value.clamp(min=0)
        ascending = least.cummax(-1).values
        return torch.cat([ascending[..., :1], ascending.diff(dim=-1)], -1)

    def canonical(self, y: Tensor) -> tuple[Tensor]:
        """The increments of the element."""
        bounded = torch.arange(y.shape[-1], device=y.device) >= self.free()
        return (torch.where(bounded & (y < 0), y / -STEEPNESS, y),)

    def violation(self, value: Tensor) -> Tensor:
        """The least change of entries that makes an element, by the entry that changes most."""
        value = self._spread(value, -1)
        # If moving each entry by t at most puts them in order, then x_i <= x_j + 2 t for i < j.
        # Half of the largest such difference suffices: put each entry halfway between itself and
        # the largest one before it.
        order = (value.cummax(-1).values - value).amax(-1) / 2
        return order if self.free() else torch.maximum(order, F.relu(-value).amax(-1))

    def project(self, value: Tensor) -> Tensor:
        """The nearest point in the Euclidean norm."""
        # The nearest vector with the bound is the nearest one without it, clamped at the bound.
        nearest = isotonic(self._spread(value, -1))
        return self._spread(nearest if self.free() else nearest.clamp(min=0))

    def project_scaled(self, value: Tensor, scale: Tensor) -> Tensor:
        """Isotonic regression with weights, as in `project`."""
        nearest = isotonic(self._spread(value, -1), scale)
        return self._spread(nearest if self.free() else nearest.clamp(min=0))

    def draw(self, shape: tuple[int, ...], random: RandomNumbers) -> Tensor:
        """Sorted standard normal numbers, or absolute values of such if none may be negative.

        A gap is added between them.
        """
        normal = random.normal(shape)
        in_order = (normal if self.free() else normal.abs()).sort(-1).values
        return self._spread(in_order)

    def linear_form(self, shape: Sequence[int]) -> LinearForm:
        """The increments, which are bounded from below."""
        n = shape[-1]
        low = torch.zeros(n, dtype=torch.float64)
        low[: self.free()] = -torch.inf
        steps = torch.arange(n, dtype=torch.float64)
        sums = torch.ones(n, n, dtype=torch.float64).tril()
        return LinearForm(low, image=Image(sums, self.gap * steps, self.right_inverse))

    def slack(self, value: Tensor) -> Tensor:
        """By how much the least difference of neighbours exceeds the gap; infinite without any."""
        # The entries before the first one: none, or the zero below which it may not fall.
        first = torch.full_like(value[..., :1], -torch.inf if self.free() else 0)
        return torch.cat([first, self._spread(value, -1)], -1).diff(dim=-1).amin(-1)

    def _spread(self, value: Tensor, sign: int = 1) -> Tensor:
        """A vector of the cone moved to where neighbours are ``gap`` apart, or back."""
        if self.gap == 0:
            return value
        steps = torch.arange(value.shape[-1], dtype=value.dtype, device=value.device)
        return value + sign * self.gap * steps


@register("ordered", aliases=("ordered_vector", "isotonic"))
class Ordered(Increments):
    r"""Vectors whose entries do not decrease.

    **Use**: cut points of an ordinal regression, quantiles, knots and breakpoints; isotonic fits,
    where neighbours may be equal.

    **Set**: $\{x \in \mathbb{R}^n : x_i \ge x_{i-1} + g\}$, for $g = 0$ a cone. Dimension $n$,
    closed.

    **Map**: $x_1 = y_1$ and $x_i = x_{i-1} + g + \max(y_i, -2^{-20} y_i)$, onto the set, with the
    derivative $+1$ at $y_i = 0$. The usual maps, exp or softplus for max, never reach equal
    entries, and their gradient vanishes on the way there.

    **Right inverse**: the first entry and the increments.

    **Reference**: Stan Reference Manual, section "Ordered vector", for the interior of the set;
    Bertsekas, On the Goldstein-Levitin-Polyak gradient projection method (1976).

    `project` is the nearest point in the Euclidean norm.

    Entries may be equal, and a vector that is out of order starts with equal entries. A likelihood
    that divides by differences of entries or takes their logarithms, such as that of the cutpoints
    of an ordinal regression, is not finite there. A gap keeps entries apart from the start on, if
    it is larger than the rounding errors of the entries.

    Args:
        gap: the least difference $g$ of neighbours, zero or more.

    Raises:
        TypeError: if gap is not a number.
        ValueError: if it is negative or not finite.

    Example:
        >>> import torch
        >>> Ordered(gap=0.5).project(torch.zeros(3))
        tensor([-0.5000,  0.0000,  0.5000])
        >>> Ordered()(torch.tensor([-1.0, 2.0, 0.0, 0.5]))
        tensor([-1.0000,  1.0000,  1.0000,  1.5000])
        >>> Ordered().project(torch.tensor([3.0, 1.0, 2.0, 4.0]))
        tensor([2., 2., 2., 4.])
    """

    examples = (({}, (1,)), ({}, (2,)), ({}, (5,)), ({}, (40,)), ({"gap": 0.25}, (5,)))

    def free(self) -> int:
        """1: only the first increment may be negative."""
        return 1


@register("positive_ordered", aliases=("positive_ordered_vector",))
class PositiveOrdered(Increments):
    r"""Vectors of numbers that are zero or more and do not decrease.

    **Use**: thresholds, times and distances in increasing order from zero; cumulative hazards and
    other monotone functions on a grid.

    **Set**: $\{x \in \mathbb{R}^n : x_1 \ge 0, x_i \ge x_{i-1} + g\}$, for $g = 0$ a cone.
    Dimension $n$, closed.

    **Map**: $x_1 = \max(y_1, -2^{-20} y_1)$ and $x_i = x_{i-1} + g + \max(y_i, -2^{-20} y_i)$, onto
    the set, with the derivative $+1$ at $y_i = 0$.

    **Right inverse**: the increments, from zero.

    **Reference**: Stan Reference Manual, section "Positive ordered vector", for the interior of the
    set; Bertsekas, On the Goldstein-Levitin-Polyak gradient projection method (1976).

    `project` is the nearest point in the Euclidean norm.

    Args:
        gap: the least difference $g$ of neighbours, zero or more.

    Raises:
        TypeError: if gap is not a number.
        ValueError: if it is negative or not finite.

    Example:
        >>> import torch
        >>> PositiveOrdered()(torch.tensor([1.0, 2.0, 0.0, 0.5]))
        tensor([1.0000, 3.0000, 3.0000, 3.5000])
        >>> PositiveOrdered().project(torch.tensor([-1.0, 2.0, 1.0]))
        tensor([0.0000, 1.5000, 1.5000])
    """

    examples = (({}, (1,)), ({}, (2,)), ({}, (5,)), ({}, (40,)), ({"gap": 0.25}, (5,)))

    def free(self) -> int:
        """0: no increment may be negative."""
        return 0
