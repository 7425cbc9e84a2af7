"""Numbers between two bounds, including the bounds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from constrained import register
from constrained.constraint.linear_form import LinearForm
from constrained.constraint.sampling import RandomNumbers
from constraints.bases.argument_checks import check_order, checked_bound
from constraints.bases.boundary import STEEPNESS, inwards
from constraints.bases.expected_failures import no_derivative
from constraints.bases.half_line import KINK
from constraints.bases.retraction import Retraction
from constraints.math.autograd import needs_derivative


@register("box", aliases=("closed_interval", "bounds"))
class Box(Retraction):
    r"""Numbers between two bounds, including the bounds.

    **Use**: bounded scalars whose bounds may be reached, up to a millionth of a step: mixing
    coefficients and gates between 0 and 1, clipped weights, physical parameters with limits. Where
    the bounds are excluded take `interval`.

    **Set**: $\{x \in \mathbb{R} : l \le x \le h\}$, elementwise. Dimension 1, closed.

    **Map**: the identity inside. Outside, the line is folded back: with half of the interval
    $w = (h - l) / 2$, a number at the distance $d$ beyond a bound has a value inside, at the
    distance $w s / (1 + s)$ from the bound, where $s = 2^{-20} d / w$. So a number that an
    optimizer has moved outside has a value at the bound, up to a millionth of the distance, and a
    gradient that leads back. Onto the set.

    **Right inverse**: the identity.

    **Reference**: Bertsekas, On the Goldstein-Levitin-Polyak gradient projection method (1976).

    Usual maps are worse: a sine has the gradient zero at the bounds, and a sigmoid never reaches
    them. `canonical` replaces a parameter by its value, so that an optimizer step ends like one of
    projected gradients.

    Args:
        low: the lower bound $l$.
        high: the upper bound $h$, greater than ``low``.

    Raises:
        ValueError: if the bounds are not finite, or in the wrong order.

    Example:
        >>> Box(low=-1, high=1)(torch.tensor([-1.0, 0.5, 1.0]))
        tensor([-1.0000,  0.5000,  1.0000])
    """

    event_dim = 0
    value_index = 0
    examples = (
        ({"low": 0.0, "high": 1.0}, ()),
        ({"low": -3.0, "high": -1.0}, ()),
        ({"low": -0.5, "high": 20.0}, ()),
    )
    expected_failures = no_derivative(KINK, "zero_params", "zeros", "ones", "boundary")

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low = checked_bound("box", low, "low")
        self.high = checked_bound("box", high, "high")
        check_order("box", self.low, self.high)

    def forward(self, y: Tensor) -> Tensor:
        """A number inside itself; for one outside, a number next to the bound."""
        half = (self.high - self.low) / 2
        if not needs_derivative(y):
            value = y.clamp(self.low, self.high)
            excess = y - value
            room = (excess.abs() / half).add_(STEEPNESS)
            return value.sub_(excess.div_(room))
        below, above = (self.low - y).clamp(min=0), (y - self.high).clamp(min=0)
        folded = torch.where(
            y < self.low, self.low + inwards(below, half), self.high - inwards(above, half)
        )
        inside = (self.low <= y) & (y <= self.high)
        return torch.where(inside, y, folded)

    def pullback(self, value: Tensor, gradient: Tensor, y: Tensor) -> tuple[Tensor]:
        """The gradient inside; outside, the gradient times the small negative slope."""
        if y is value:
            return (gradient.clone(),)
        half = (self.high - self.low) / 2
        outside = (y - y.clamp(self.low, self.high)).abs_()
        slope = (outside / (STEEPNESS * half)).add_(1).square_().mul_(-STEEPNESS).reciprocal_()
        return (gradient * slope.masked_fill_(outside == 0, 1),)

    def canonical(self, y: Tensor) -> tuple[Tensor]:
        """The element itself."""
        return (self.forward(y),)

    def violation(self, value: Tensor) -> Tensor:
        """The distance from the interval."""
        return F.relu(self.low - value) + F.relu(value - self.high)

    def slack(self, value: Tensor) -> Tensor:
        """The distance from the nearer bound."""
        return torch.minimum(value - self.low, self.high - value)

    def project(self, value: Tensor) -> Tensor:
        """The nearest number of the set."""
        return value.clamp(self.low, self.high)

    def linear_form(self, shape: Sequence[int]) -> LinearForm:
        """The two bounds."""
        del shape
        return LinearForm(self.low, self.high)

    def retract_(self, value: Tensor) -> None:
        """`project` in one pass over memory."""
        value.clamp_(self.low, self.high)

    def draw(self, shape: tuple[int, ...], random: RandomNumbers) -> Tensor:
        """Numbers uniform on the interval."""
        value = self.low + (self.high - self.low) * random.uniform(shape)
        return value.clamp(self.low, self.high)
