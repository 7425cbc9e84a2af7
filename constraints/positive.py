"""Numbers with a sign: the open and the closed half-line."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from constrained import Constraint, register
from constraints.softplus import inverse_softplus, softplus


@register("positive")
class Positive(Constraint):
    """Positive numbers.

    **Set**: {x in R : x > 0}, elementwise. Dimension 1, open.

    **Map**: softplus, y -> log(1 + exp(y)), onto the set. Where it underflows the value stays at
    the smallest normal number.

    **Right inverse**: x -> x + log(1 - exp(-x)). The coordinate of a small x is about log(x), which
    a floating-point number resolves to eps |log(x)|: so accurate is the round trip, relative to x.
    A zero, which lies on the boundary, becomes the machine epsilon, as under `project`: at the
    smallest positive number the gradient would vanish with the value.

    **Reference**: Dugas et al., Incorporating second-order functional knowledge for better option
    pricing (NIPS 2000). It is preferred to exp, whose gradient grows with the value.

    Example:
        >>> positive = Positive()
        >>> positive(torch.tensor([-1e6, 0.0, 5.0])) > 0
        tensor([True, True, True])
        >>> positive(positive.right_inverse(torch.tensor([0.1, 2.0])))
        tensor([0.1000, 2.0000])
    """

    event_dim = 0
    closed = False
    examples = (({}, ()),)

    def forward(self, y: Tensor) -> Tensor:
        """``log(1 + exp(y))``."""
        return softplus(y).clamp(min=torch.finfo(y.dtype).tiny)

    def right_inverse(self, value: Tensor) -> Tensor:
        """``x + log(1 - exp(-x))``."""
        return inverse_softplus(self.project(value).clamp(min=torch.finfo(value.dtype).tiny))

    def violation(self, value: Tensor) -> Tensor:
        """``max(-x, 0)``, the distance from the closure."""
        return F.relu(-value)

    def project(self, value: Tensor) -> Tensor:
        """The machine epsilon in the place of zero and of negative numbers."""
        return torch.where(value > 0, value, torch.finfo(value.dtype).eps)

    def sample(
        self,
        shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Log-normal numbers: exp of a standard normal one."""
        return torch.randn(shape, generator=generator, dtype=dtype, device=device).exp()

    def dimension(self, shape: Sequence[int]) -> int:
        """1, each number being an element."""
        del shape
        return 1


#: How much steeper `Nonnegative` is above zero than below; a power of two rounds nothing.
_STEEPNESS = 2.0**20


@register("nonnegative", aliases=("non_negative", "non_neg"))
class Nonnegative(Constraint):
    """Numbers that are zero or positive.

    **Set**: {x in R : x >= 0}, elementwise. Dimension 1, closed.

    **Map**: y -> max(y, -y / 2^20), onto the set, with the derivative +1 at y = 0.

    **Right inverse**: the identity.

    **Reference**: Bertsekas, On the Goldstein-Levitin-Polyak gradient projection method (1976). The
    usual maps fail at the boundary: exp and softplus never reach zero, the square has the gradient
    zero there, ReLU has it everywhere below, and the absolute value throws a parameter that
    overshoots zero back as far as it came, so that with momentum it never settles.

    `canonical` replaces a parameter by its value. An optimizer step thus ends like one of projected
    gradients, at zero up to a millionth of the overshoot. Where nobody calls `canonical`, the small
    slope below zero still leads back, which Adam and its like, blind to the scale, can follow.

    Example:
        >>> nonnegative = Nonnegative()
        >>> y = torch.tensor([-2.0, 0.0, 3.0], requires_grad=True)
        >>> nonnegative(y).tolist()
        [1.9073486328125e-06, 0.0, 3.0]
        >>> torch.autograd.grad(nonnegative(y).sum(), y)[0].tolist()
        [-9.5367431640625e-07, 1.0, 1.0]
    """

    event_dim = 0
    examples = (({}, ()),)
    exempt = dict.fromkeys(
        (
            "first_derivative:zero_params",
            "first_derivative:zeros",
            "second_derivative:zero_params",
            "second_derivative:zeros",
        ),
        "a kink at y = 0, which every map of the line onto the half-line has that leaves zero with "
        "a nonzero slope",
    )

    def forward(self, y: Tensor) -> Tensor:
        """``max(y, -y / 2^20)``."""
        return torch.where(y >= 0, y, -y / _STEEPNESS)

    def right_inverse(self, value: Tensor) -> Tensor:
        """The identity."""
        return value

    def canonical(self, y: Tensor) -> tuple[Tensor]:
        """The number itself."""
        return (self.forward(y),)

    def violation(self, value: Tensor) -> Tensor:
        """``max(-x, 0)``, the distance from the set."""
        return F.relu(-value)

    def project(self, value: Tensor) -> Tensor:
        """``max(x, 0)``, the nearest number of the set."""
        return F.relu(value)

    def sample(
        self,
        shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Half-normal numbers: the absolute value of a standard normal one."""
        return torch.randn(shape, generator=generator, dtype=dtype, device=device).abs()

    def dimension(self, shape: Sequence[int]) -> int:
        """1, each number being an element."""
        del shape
        return 1
