"""Shells: vectors whose length lies between two bounds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from constrained import register
from constrained.constraint.sampling import RandomNumbers
from constrained.torch_internals import linalg
from constraints.bases.argument_checks import PositiveNumber, check_order, checked_positive
from constraints.bases.expected_failures import no_derivative
from constraints.bases.shapes import Vectors
from constraints.math.unit_vectors import normalized, scaled
from constraints.scalars.box import Box


@register("min_max_norm")
class MinMaxNorm(Vectors):
    r"""Vectors whose Euclidean length lies between two bounds.

    **Use**: weights into each unit that may neither vanish nor explode
    (``keras.constraints.MinMaxNorm``).

    **Set**: $\{x \in \mathbb{R}^n : l \le \lVert x \rVert \le h\}$. Dimension $n$, closed.

    **Map**: $(v, s) \mapsto s v / \lVert v \rVert$, where the length $s$ is folded at the bounds as
    for `box`, and the first unit vector takes the place of the direction of $v = 0$. Onto the set.
    Direction and length are two parameters, because weight decay would keep a single one below the
    lower bound, where the gradient of a projection has no radial component.

    **Right inverse**: $x \mapsto (x / \lVert x \rVert, \lVert x \rVert)$.

    **Reference**: as ``keras.constraints.MinMaxNorm`` with ``rate=1``.

    The vectors are the last dimension of the tensor: the rows of the weight of ``nn.Linear``.

    Args:
        low: the least length $l$, greater than zero; without one take `max_norm`.
        high: the greatest length $h$, greater than ``low``.

    Raises:
        ValueError: if a bound is not positive and finite, or they are in the wrong order.

    Example:
        >>> W = MinMaxNorm(low=1.0, high=5.0).project(torch.tensor([[6.0, 8.0], [0.0, 0.5]]))
        >>> torch.allclose(W, torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
        True
    """

    recompute_in_backward = True
    examples = (
        ({"low": 0.5, "high": 2.0}, (1,)),
        ({"low": 0.5, "high": 2.0}, (3,)),
        ({"low": 1.0, "high": 1.5}, (5,)),
    )
    expected_failures = no_derivative(
        "a length has a kink at a bound, where identity and fold meet; and zero has no direction",
        *("zero_params", "zeros", "ones", "boundary"),
    )

    def __init__(self, low: PositiveNumber, high: PositiveNumber) -> None:
        super().__init__()
        self.low = checked_positive("min_max_norm", low, "low")
        self.high = checked_positive("min_max_norm", high, "high")
        check_order("min_max_norm", self.low, self.high)
        self._lengths = Box(self.low, self.high)

    def forward(self, v: Tensor, length: Tensor) -> Tensor:
        """``l v / ||v||`` with l between the bounds."""
        return normalized(v, 1.0) * self._lengths(length)

    def right_inverse(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """``(x / ||x||, ||x||)``."""
        direction, scale = scaled(value)
        norm = linalg.vector_norm(direction, dim=-1, keepdim=True)
        return direction / norm, (scale * norm).clamp(self.low, self.high)

    def canonical(self, v: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """The direction with length one, and the length between the bounds."""
        return normalized(v, 1.0), self._lengths(length)

    def restored_together(self, count: int) -> Sequence[Sequence[int]]:
        """Each parameter by itself."""
        return [[i] for i in range(count)]

    def violation(self, value: Tensor) -> Tensor:
        """How much too short or too long the vector is."""
        direction, scale = scaled(value)
        length = (scale * linalg.vector_norm(direction, dim=-1, keepdim=True)).squeeze(-1)
        return (self.low - length).clamp(min=0) + (length - self.high).clamp(min=0)

    def slack(self, value: Tensor) -> Tensor:
        """The distance of the length from the nearer bound."""
        direction, scale = scaled(value)
        length = (scale * linalg.vector_norm(direction, dim=-1, keepdim=True)).squeeze(-1)
        return torch.minimum(length - self.low, self.high - length)

    def project(self, value: Tensor) -> Tensor:
        """The nearest point in the Euclidean norm; for zero, which has none, along ``e_1``."""
        direction, scale = scaled(value)
        norm = linalg.vector_norm(direction, dim=-1, keepdim=True)
        length, rounding = scale * norm, 2 * torch.finfo(value.dtype).eps
        # Moved inside by a rounding, where the derivative is the identity; outside it is not.
        low, high = self.low * (1 + rounding), self.high * (1 - rounding)
        outside = (length < low) | (length > high)
        return torch.where(outside, direction * (length.clamp(low, high) / norm), value)

    def draw(self, shape: tuple[int, ...], random: RandomNumbers) -> Tensor:
        """The direction of a normal vector, with a length that is uniform between the bounds."""
        direction, _ = scaled(random.normal(shape))
        length = self.low + (self.high - self.low) * random.uniform((*shape[:-1], 1))
        return direction * (length / linalg.vector_norm(direction, dim=-1, keepdim=True))
