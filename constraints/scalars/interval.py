"""Numbers between two bounds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from constrained import Constraint, register
from constrained.constraint.linear_form import LinearForm
from constrained.constraint.sampling import RandomNumbers
from constraints.bases.argument_checks import checked_number
from constraints.math.autograd import needs_derivative
from constraints.math.rounding import kept, least_positive


@register("interval", aliases=("open_interval",))
class Interval(Constraint):
    r"""Numbers strictly between two bounds.

    **Use**: bounded scalars strictly inside: a decay or a dropout probability between 0 and 1, a
    correlation between -1 and 1, a lengthscale of known order. Where the bounds may be reached take
    `box`.

    **Set**: $\{x \in \mathbb{R} : l < x < h\}$, elementwise. Dimension 1, open.

    **Map**: the scaled sigmoid $y \mapsto l + (h - l) / (1 + \exp(-y))$, onto the set. Where
    rounding would give a bound, the value is a number just inside, with the same gradient.

    **Right inverse**: the logit, $x \mapsto \log((x - l) / (h - x))$. A bound, which is not a
    member, is replaced by its projection.

    **Reference**: Stan Reference Manual, section "Lower and upper bounded scalar".

    Args:
        low: the lower bound $l$.
        high: the upper bound $h$, greater than ``low``.

    Example:
        >>> interval = Interval(-1.0, 3.0)
        >>> interval(torch.tensor([-1e6, 0.0, 1e6]))
        tensor([-1.0000,  1.0000,  3.0000])
        >>> interval(torch.tensor(1e6)) < 3
        tensor(True)
        >>> interval.right_inverse(torch.tensor([0.0, 1.0, 2.0]))
        tensor([-1.0986,  0.0000,  1.0986])
    """

    event_dim = 0
    closed = False
    examples = (
        ({"low": 0.0, "high": 1.0}, ()),
        ({"low": -3.0, "high": -1.0}, ()),
        ({"low": -0.5, "high": 20.0}, ()),
    )

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low = checked_number("interval", low, "low")
        self.high = checked_number("interval", high, "high")
        if not self.low < self.high or not math.isfinite(self.high - self.low):
            raise ValueError(
                f"interval: low must be less than high, and both finite, "
                f"got low={low!r} and high={high!r}."
            )

    def forward(self, y: Tensor) -> Tensor:
        """``low + (high - low) * sigmoid(y)``."""
        # Measured from the nearer end: near high, low + width * sigmoid(y) would be as coarse as
        # the spacing of floating-point numbers around (high - low).
        if not needs_derivative(y):
            # Products with the sign: `torch.where` takes thirty times longer on random signs.
            side, half = torch.sign(y), (self.high - self.low) / 2
            distance = y.abs().neg_().sigmoid_().mul_(2 * half).mul_(side)
            return (
                side.mul_(half)
                .add_(self.low + half)
                .sub_(distance)
                .clamp_(*self._innermost(y.dtype))
            )
        upper = y > 0
        distance = (self.high - self.low) * torch.sigmoid(torch.where(upper, -y, y))
        value = torch.where(upper, self.high - distance, self.low + distance)
        return kept(value, *self._innermost(y.dtype))

    def pullback(self, value: Tensor, gradient: Tensor, y: Tensor) -> tuple[Tensor]:
        """The gradient times the derivative ``(high - low) sigmoid(y) sigmoid(-y)``."""
        slope = torch.sigmoid(y).mul_(torch.sigmoid(-y)).mul_(self.high - self.low)
        return (slope.mul_(gradient),)

    def right_inverse(self, value: Tensor) -> Tensor:
        """``log((x - low) / (high - x))``."""
        inside = self.project(value)
        width = self.high - self.low
        least = least_positive(value.dtype)
        # Both are between 0 and 1 and clamped from below, so that their ratio does not overflow.
        below = ((inside - self.low) / width).clamp(min=least)
        above = ((self.high - inside) / width).clamp(min=least)
        return torch.log(below / above)

    def violation(self, value: Tensor) -> Tensor:
        """The distance from the closed interval."""
        return F.relu(self.low - value) + F.relu(value - self.high)

    def slack(self, value: Tensor) -> Tensor:
        """The distance from the nearer bound."""
        return torch.minimum(value - self.low, self.high - value)

    def project(self, value: Tensor) -> Tensor:
        """A number outside moves inside of the nearer bound, by eps times the larger bound."""
        margin = torch.finfo(value.dtype).eps * max(abs(self.low), abs(self.high))
        margin = min(margin, (self.high - self.low) / 4)
        inside = (value > self.low) & (value < self.high)
        return torch.where(inside, value, value.clamp(self.low + margin, self.high - margin))

    def linear_form(self, shape: Sequence[int]) -> LinearForm:
        """The two bounds."""
        del shape
        return LinearForm(self.low, self.high)

    def inwards(self, value: Tensor, share: float) -> Tensor:
        """Next to a bound, the number at which the derivative is ``share`` of the largest."""
        # At low + u width the derivative is u (1 - u) width.
        u = (1 - math.sqrt(1 - share)) / 2
        least, greatest = (
            self.low + u * (self.high - self.low),
            self.high - u * (self.high - self.low),
        )
        return value.clamp(least, greatest)

    def draw(self, shape: tuple[int, ...], random: RandomNumbers) -> Tensor:
        """Numbers uniform on the interval."""
        value = self.low + (self.high - self.low) * random.uniform(shape)
        return value.clamp(*self._innermost(value.dtype))

    def rounded(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        """The number itself, or the nearest one inside if it would be rounded to a bound."""
        return kept(value, *self._innermost(dtype)).to(dtype)

    def _innermost(self, dtype: torch.dtype) -> tuple[float, float]:
        # One to two units in the last place inside: eps |b| is between 1 and 2 units of b, so that
        # b + eps |b| rounds to a number above b. An interval too narrow to hold such numbers in
        # this dtype shrinks to the middle of it instead of turning inside out.
        quarter = (self.high - self.low) / 4
        eps, least = torch.finfo(dtype).eps, least_positive(dtype)
        above, below = (
            min(max(eps * abs(bound), least), quarter) for bound in (self.low, self.high)
        )
        return self.low + above, self.high - below
