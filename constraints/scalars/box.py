"""Numbers between two bounds, with the bounds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from constrained import Constraint, register
from constraints.bases.arguments import checked_bound
from constraints.bases.boundary import STEEPNESS, inwards
from constraints.bases.half_line import KINK
from constraints.math.autograd import needs_derivative


@register("box", aliases=("closed_interval", "bounds"))
class Box(Constraint):
    """Numbers between two bounds, with the bounds.

    **Set**: {x in R : low <= x <= high}, elementwise. Dimension 1, closed.

    **Map**: the identity inside. Outside it is folded back, onto the set: d beyond a bound, the
    value lies s / (1 + s) times half of the interval inside of it, where s is d over 2^20 times
    that half. So a number that an optimizer moved out has a value at the bound, up to a millionth
    of how far it went, and a gradient that leads back.

    **Right inverse**: the identity.

    **Reference**: Bertsekas, On the Goldstein-Levitin-Polyak gradient projection method (1976). A
    sine or a sigmoid has the gradient zero at the bounds, or never reaches them.

    `canonical` replaces a parameter by its value: an optimizer step ends like one of projected
    gradients.

    Args:
        low: the lower bound.
        high: the upper bound, greater than ``low``.

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
    expected_failures = dict.fromkeys(
        (
            f"{order}_derivative:{point}"
            for order in ("first", "second")
            for point in ("zero_params", "zeros", "ones", "boundary")
        ),
        KINK,
    )

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low = checked_bound("box", low, "low")
        self.high = checked_bound("box", high, "high")
        if not self.low < self.high:
            raise ValueError(f"box: low must be less than high, got low={low!r} and high={high!r}.")

    def forward(self, y: Tensor) -> Tensor:
        """The number itself inside, and next to a bound else."""
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
        """The gradient itself inside, and turned round and made small where it is folded back."""
        if y is value:
            return (gradient.clone(),)
        half = (self.high - self.low) / 2
        outside = (y - y.clamp(self.low, self.high)).abs_()
        slope = (outside / (STEEPNESS * half)).add_(1).square_().mul_(-STEEPNESS).reciprocal_()
        return (gradient * slope.masked_fill_(outside == 0, 1),)

    def right_inverse(self, value: Tensor) -> Tensor:
        """The identity."""
        return value

    def canonical(self, y: Tensor) -> tuple[Tensor]:
        """The number itself."""
        return (self.forward(y),)

    def violation(self, value: Tensor) -> Tensor:
        """The distance from the interval."""
        return F.relu(self.low - value) + F.relu(value - self.high)

    def project(self, value: Tensor) -> Tensor:
        """The nearest number of the set."""
        return value.clamp(self.low, self.high)

    def sample(
        self,
        shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Numbers uniform on the interval."""
        share = torch.rand(shape, generator=generator, dtype=dtype, device=device)
        return (self.low + (self.high - self.low) * share).clamp(self.low, self.high)

    def dimension(self, shape: Sequence[int]) -> int:
        """1, each number being an element."""
        del shape
        return 1
