"""A constraint of one's own: what the README shows, below.

Its laws are tried by the tests, and its types by pyright in the mode that it has by default.
"""

# pyright: standard

import torch
from torch import Tensor, nn

from constrained import Constraint, constrain, register


@register("linear_phase")
class LinearPhase(Constraint):
    """Filters that read the same backwards: they delay all frequencies alike.

    **Set**: {x in R^n : x_i = x_(n + 1 - i)}. Dimension n / 2, rounded up, closed.
    **Map**: y -> (y + reversed y) / 2, onto the set.
    **Right inverse**: the identity.
    **Reference**: Oppenheim and Schafer, Discrete-Time Signal Processing, section 5.7.
    """

    event_dim = 1
    examples = (({}, (4,)), ({}, (5,)))

    def forward(self, y: Tensor) -> Tensor:
        return (y + y.flip(-1)) / 2

    def right_inverse(self, value: Tensor) -> Tensor:
        return value

    def violation(self, value: Tensor) -> Tensor:
        return torch.linalg.vector_norm(value - value.flip(-1), dim=-1) / 2

    def project(self, value: Tensor) -> Tensor:
        return (value + value.flip(-1)) / 2

    def sample(self, shape, *, generator=None, dtype=None, device=None) -> Tensor:
        return self.project(torch.randn(shape, generator=generator, dtype=dtype, device=device))

    def dimension(self, shape) -> int:
        return (shape[-1] + 1) // 2


constrain(nn.Conv1d(1, 3, 5), "weight", "linear_phase")
