"""Half-lines: the numbers on one side of a bound, without it or with it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from constrained import Constraint
from constraints.bases.arguments import kept, least_positive
from constraints.bases.boundary import STEEPNESS
from constraints.math.autograd import needs_derivative
from constraints.math.softplus import inverse_softplus, least_softplus, softplus


class HalfLine(Constraint):
    """What half-lines share: they are made of an end, and a direction from there.

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

    def dimension(self, shape: Sequence[int]) -> int:
        """1, each number being an element."""
        del shape
        return 1

    def outwards(self, amount: Tensor) -> Tensor:
        """The number that lies ``amount`` inside of the bound."""
        return self.end + self._upwards(amount)

    def _upwards(self, y: Tensor) -> Tensor:
        """``direction * y``, without a product."""
        return y if self.direction > 0 else -y


class OpenHalfLine(HalfLine):
    """A half-line without its end, which softplus maps the real line onto."""

    closed = False

    def forward(self, y: Tensor) -> Tensor:
        """``end + direction * log(1 + exp(direction * y))``."""
        return self._inside(self.outwards(softplus(self._upwards(y))), y.dtype)

    def pullback(self, value: Tensor, gradient: Tensor, y: Tensor) -> tuple[Tensor]:
        """Times ``sigmoid(direction * y)``."""
        return (torch.sigmoid(self._upwards(y)).mul_(gradient),)

    def right_inverse(self, value: Tensor) -> Tensor:
        """The inverse of softplus, of the distance from the bound."""
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

    def sample(
        self,
        shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """A log-normal distance from the bound: exp of a standard normal number."""
        normal = torch.randn(shape, generator=generator, dtype=dtype, device=device)
        return self._inside(self.outwards(normal.exp()), normal.dtype)

    def rounded(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        """The number, or the one next to the bound."""
        return self._inside(value, dtype).to(dtype)

    def _inside(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        """Where rounding would end at the bound, a number beside it, with the gradient."""
        # One to two units in the last place of the bound.
        least = max(torch.finfo(dtype).eps * abs(self.end), least_positive(dtype))
        innermost = self.end + self.direction * least
        return kept(value, *((innermost, None) if self.direction > 0 else (None, innermost)))


class ClosedHalfLine(HalfLine):
    """A half-line with its end, which is reached, and left again.

    The map is the identity inside. Outside it is folded back, with the slope -1 / 2^20: a number
    that an optimizer moved beyond the bound has a value at the bound, up to a millionth of how far
    it went. `canonical` replaces a parameter by its value, so that an optimizer step ends like one
    of projected gradients. Where nobody calls `canonical`, the small slope still leads back, which
    Adam and its like, blind to the scale, can follow.
    """

    value_index = 0

    def forward(self, y: Tensor) -> Tensor:
        """The number itself inside, and next to the bound else."""
        excess = y - self.end
        folded = self.end - excess / STEEPNESS
        if not needs_derivative(y):
            # Inside of the bound a number is on the near side of its image, outside beyond it.
            return (torch.maximum if self.direction > 0 else torch.minimum)(y, folded)
        return torch.where(self.direction * excess >= 0, y, folded)

    def pullback(self, value: Tensor, gradient: Tensor, y: Tensor) -> tuple[Tensor]:
        """The gradient itself inside, and turned round, times 2^-20, where it is folded back."""
        if y is value:
            return (gradient.clone(),)
        inside = y >= self.end if self.direction > 0 else y <= self.end
        return (torch.where(inside, gradient, gradient * (-1 / STEEPNESS)),)

    def right_inverse(self, value: Tensor) -> Tensor:
        """The identity."""
        return value

    def canonical(self, y: Tensor) -> tuple[Tensor]:
        """The number itself."""
        return (self.forward(y),)

    def project(self, value: Tensor) -> Tensor:
        """The nearest number of the set: the bound for what lies beyond it."""
        return value.clamp(min=self.end) if self.direction > 0 else value.clamp(max=self.end)

    def sample(
        self,
        shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """A half-normal distance from the bound: a standard normal number's absolute value."""
        normal = torch.randn(shape, generator=generator, dtype=dtype, device=device)
        return self.outwards(normal.abs())


#: Every map of the line onto a half-line that leaves the end with a nonzero slope has a kink.
KINK = "a kink at the bound, as every map of the line onto it that leaves it with a nonzero slope"
