"""Angles: numbers modulo one turn."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from constrained import register
from constrained.constraint.sampling import RandomNumbers
from constraints.bases.expected_failures import failing
from constraints.bases.retraction import Retraction


@register("angle", aliases=("circular",))
class Angle(Retraction):
    r"""Angles in radians, between minus and plus half a turn.

    **Use**: phases, headings, rotary offsets and other directions in the plane, which start again
    after a turn.

    **Set**: $\{x \in \mathbb{R} : -\pi \le x \le \pi\}$, elementwise. Both ends are the same angle.
    Dimension 1, closed.

    **Map**: $y \mapsto y - 2 \pi k$, where $2 \pi k$ is the nearest multiple of $2 \pi$, onto the
    set. The derivative is 1 everywhere, so an optimizer moves around the circle as on the line.

    **Right inverse**: the identity.

    **Reference**: Mardia and Jupp, Directional Statistics (2000), section 3.1, for the wrapping.

    `project` wraps too. It gives the same angle, which is not always the nearest number of the set.

    Example:
        >>> Angle()(torch.tensor([0.0, 3.0, 4.0, -7.0]))
        tensor([ 0.0000,  3.0000, -2.2832, -0.7168])
    """

    event_dim = 0
    examples = (({}, ()),)
    expected_failures = failing(
        "project goes around the circle to the same angle, and not to the nearest number",
        "nearest",
        "violation_grows",
    )

    def forward(self, y: Tensor) -> Tensor:
        """The angle, wrapped into the set."""
        return _wrapped(y)

    def canonical(self, y: Tensor) -> tuple[Tensor]:
        """The angle, wrapped into the set: a number far from zero has few digits for the angle."""
        return (_wrapped(y),)

    def tangent(self, value: Tensor, vector: Tensor) -> Tensor:
        """The vector itself: a circle has no boundary, and goes on at both ends of the interval."""
        del value
        return vector

    def violation(self, value: Tensor) -> Tensor:
        """The distance from the interval."""
        return F.relu(value.abs() - math.pi)

    def draw(self, shape: tuple[int, ...], random: RandomNumbers) -> Tensor:
        """Angles uniform on the circle."""
        return (2 * math.pi * (random.uniform(shape) - 0.5)).clamp(-math.pi, math.pi)


def _wrapped(y: Tensor) -> Tensor:
    # A number inside stays bit for bit. The number of turns is held constant for derivative 1.
    turns = torch.where(y.detach().abs() <= math.pi, 0, torch.round(y.detach() / (2 * math.pi)))
    value = y - 2 * math.pi * turns
    # Clamped, since the result for a number so large that it has no digits for the angle may be far
    # outside. The term y - y is zero and carries the derivative 1.
    return value.clamp(-math.pi, math.pi).detach() + (y - y.detach())
