"""Half-lines: the numbers on one side of a bound, with or without the bound itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from constrained import Constraint
from constrained.constraint.linear_form import LinearForm
from constrained.constraint.sampling import RandomNumbers
from constraints.bases.argument_checks import checked_bound
from constraints.bases.boundary import STEEPNESS
from constraints.math.autograd import needs_derivative
from constraints.math.rounding import kept, least_positive
from constraints.math.softplus import inverse_softplus, least_softplus, softplus


class HalfLine(Constraint):
    """Base of half-lines, which have an end and a direction in which they extend from it.

    Attributes:
        end: the bound.
        direction: 1 for the numbers above it, -1 for those below.
    """

    event_dim = 0
    end: float
    direction: int

    def violation(self, value: Tensor) -> Tensor:
        """How far a number lies beyond the bound."""
        return F.relu(self.direction * (self.end - value))

    def slack(self, value: Tensor) -> Tensor:
        """The distance from the bound."""
        return self.direction * (value - self.end)

    def linear_form(self, shape: Sequence[int]) -> LinearForm:
        """The bound."""
        del shape
        return LinearForm(low=self.end) if self.direction > 0 else LinearForm(high=self.end)

    def _at(self, distance: Tensor) -> Tensor:
        """The number inside at this distance from the bound."""
        return self.end + self._upwards(distance)

    def _upwards(self, y: Tensor) -> Tensor:
        """``direction * y``, without a product."""
        return y if self.direction > 0 else -y


class Bounded(HalfLine):
    """A half-line from a bound that is given."""

    def __init__(self, bound: float) -> None:
        super().__init__()
        self.bound = self.end = checked_bound(type(self).name or type(self).__name__, bound)


class OpenHalfLine(HalfLine):
    """A half-line without its end, as the image of the real line under softplus."""

    closed = False

    def forward(self, y: Tensor) -> Tensor:
        """``end + direction * log(1 + exp(direction * y))``."""
        return self._inside(self._at(softplus(self._upwards(y))), y.dtype)

    def pullback(self, value: Tensor, gradient: Tensor, y: Tensor) -> tuple[Tensor]:
        """The gradient times ``sigmoid(direction * y)``, the derivative of softplus."""
        return (torch.sigmoid(self._upwards(y)).mul_(gradient),)

    def right_inverse(self, value: Tensor) -> Tensor:
        """The inverse of softplus, applied to the distance from the bound."""
        distance = (self.direction * (self.project(value) - self.end)).clamp(
            min=least_positive(value.dtype)
        )
        return self._upwards(inverse_softplus(distance))

    def project(self, value: Tensor) -> Tensor:
        """A number beyond the bound goes to the machine epsilon (times the bound) inside of it."""
        inside = self.direction * (value - self.end) > 0
        margin = torch.finfo(value.dtype).eps * max(1.0, abs(self.end))
        return torch.where(inside, value, self.end + self.direction * margin)

    def inwards(self, value: Tensor, share: float) -> Tensor:
        """Next to the bound, the number at which the derivative of softplus is ``share``."""
        least = least_softplus(share)
        far = self.direction * (value - self.end) >= least
        return torch.where(far, value, self.end + self.direction * least)

    def draw(self, shape: tuple[int, ...], random: RandomNumbers) -> Tensor:
        """A log-normal distance from the bound: exp of a standard normal number."""
        return self._inside(self._at(random.normal(shape).exp()), random.dtype)

    def rounded(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        """The number itself, or the nearest one inside if it would be rounded to the bound."""
        return self._inside(value, dtype).to(dtype)

    def _inside(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        """The value, but at least one number away from the bound, with an unchanged gradient."""
        # One to two units in the last place of the bound.
        least = max(torch.finfo(dtype).eps * abs(self.end), least_positive(dtype))
        innermost = self.end + self.direction * least
        return kept(value, *((innermost, None) if self.direction > 0 else (None, innermost)))


class ClosedHalfLine(HalfLine):
    """A half-line with its end, which training can reach and leave again.

    The map is the identity inside. Outside it folds the line back, with the slope -1 / 2^20: a
    parameter that an optimizer moved a distance d beyond the bound has a value d / 2^20 inside of
    it. `canonical` replaces a parameter by its value, so that an optimizer step ends like one of
    projected gradients. Without `canonical` the small slope still leads back: Adam and similar
    optimizers do not depend on the scale of a gradient.
    """

    value_index = 0

    def forward(self, y: Tensor) -> Tensor:
        """The number itself inside; a number next to the bound for one outside."""
        excess = y - self.end
        folded = self.end - excess / STEEPNESS
        if not needs_derivative(y):
            # Inside, y is farther from the bound than `folded`, which lies outside; and vice versa.
            return (torch.maximum if self.direction > 0 else torch.minimum)(y, folded)
        return torch.where(self.direction * excess >= 0, y, folded)

    def pullback(self, value: Tensor, gradient: Tensor, y: Tensor) -> tuple[Tensor]:
        """The gradient inside, and -2^-20 times the gradient where the line is folded back."""
        if y is value:
            return (gradient.clone(),)
        inside = y >= self.end if self.direction > 0 else y <= self.end
        return (torch.where(inside, gradient, gradient * (-1 / STEEPNESS)),)

    def right_inverse(self, value: Tensor) -> Tensor:
        """The identity."""
        return value

    def canonical(self, y: Tensor) -> tuple[Tensor]:
        """The element itself."""
        return (self.forward(y),)

    def project(self, value: Tensor) -> Tensor:
        """The nearest number of the set: the bound for a number beyond it."""
        return value.clamp(min=self.end) if self.direction > 0 else value.clamp(max=self.end)

    def retract_(self, value: Tensor) -> None:
        """`project` in one pass over memory."""
        if self.direction > 0:
            value.clamp_(min=self.end)
        else:
            value.clamp_(max=self.end)

    def draw(self, shape: tuple[int, ...], random: RandomNumbers) -> Tensor:
        """A half-normal distance from the bound: a standard normal number's absolute value."""
        return self._at(random.normal(shape).abs())


#: Why the laws about derivatives fail at the bound of a closed half-line.
KINK = "a kink at the bound, as every map of the line onto it that leaves it with a nonzero slope"
