"""Balls: vectors whose length is bounded."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from constrained import Constraint, register
from constrained.constraint import recomputed
from constrained.tolerance import working_dtype
from constraints.bounds import checked_bound, checked_positive
from constraints.derivatives import goes_by_operator, needs_derivative
from constraints.fold import lingering
from constraints.l1_projection import beyond_l1_ball, l1_ball_gradient, onto_l1_ball
from constraints.unit import is_moderate
from constraints.unit import scaled as scaled_to_one

_KINK = "a kink on the boundary: the identity inside, a scaling or a projection outside"


def _kinks(*points: str) -> dict[str, str]:
    orders = ("first", "second")
    return dict.fromkeys([f"{o}_derivative:{point}" for o in orders for point in points], _KINK)


def _kinks_and_outside() -> dict[str, str]:
    why = (
        "outside it is the gradient at the element, of which a step is made: an entry that the map "
        "sends to 0 has no other"
    )
    return {**_kinks("ones", "boundary"), "pullback_is_the_gradient": why, "compiles": why}


class LengthBound(Constraint):
    """What sets of vectors share whose length may be anything up to a bound, in some norm.

    The map is the identity inside. Outside, a vector is scaled back to the boundary, or for the sum
    of absolute values goes to the nearest point, where small entries are zero. `canonical` takes a
    parameter that a step has led outside back there, little by little: see `lingering`.
    """

    event_dim = 1
    is_euclidean = False
    is_absolute_sum = False

    @abstractmethod
    def greatest(self) -> float:
        """The bound."""

    @abstractmethod
    def length(self, value: Tensor) -> Tensor:
        """The norm of each vector, of shape ``(*batch, 1)``; no entry is above 1."""

    def forward(self, y: Tensor) -> Tensor:
        """The vector itself inside, and on the boundary else."""
        if self.is_absolute_sum:
            value = onto_l1_ball(y, self.greatest())
            # In compiled code there is no pullback to be asked.
            return value.detach() + (y - y.detach()) if goes_by_operator() else value
        # Another norm of large numbers errs with the logarithm of their size.
        if self.is_euclidean and not needs_derivative(y):
            length = self.length(y)
            if is_moderate(length[length > self._most(y)]):
                return y * self._factor(length)
        scaled, scale = scaled_to_one(y)
        length, bound = scale * self.length(scaled), self.greatest()
        outside = length > bound
        # In the branch that is not taken nothing may be infinite, or its gradient would be NaN.
        factor = bound / torch.where(outside, length, 1)
        return torch.where(outside, y * factor, y)

    def has_pullback(self) -> bool:
        """For the Euclidean norm and the sum of absolute values."""
        return self.is_euclidean or self.is_absolute_sum

    def pullback(self, value: Tensor, gradient: Tensor, y: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient itself inside; outside the part along the boundary, scaled as y is.

        For the sum of absolute values the gradient itself everywhere, of which `step_gradient` is
        made: outside, the map would give an entry that is 0 no derivative.
        """
        if self.is_absolute_sum:
            return (gradient,)
        length = self.length(y)
        outside = length > self._most(y)
        if not (y.is_cpu and is_moderate(length[outside])):
            return recomputed(self, gradient, (y,))
        factor = self._factor(length)
        along = torch.linalg.vecdot(gradient, y).unsqueeze(-1)
        along = torch.where(outside, factor * along / length.square(), 0)
        return ((gradient * factor).addcmul_(y, along, value=-1),)

    def step_gradient(self, gradient: Tensor, *params: Tensor) -> Tensor:
        """For the sum of absolute values, the gradient mapping of `l1_ball_gradient`."""
        if not self.is_absolute_sum:
            return gradient
        value = onto_l1_ball(params[0], self.greatest())
        return l1_ball_gradient(gradient, value, self.greatest())

    def has_step_gradient(self) -> bool:
        """For the sum of absolute values."""
        return self.is_absolute_sum

    def _factor(self, length: Tensor) -> Tensor:
        return torch.where(length > self._most(length), self.greatest() / length, 1)

    def _most(self, y: Tensor) -> float:
        # A length that is summed in another order exceeds the bound by some roundings.
        return self.greatest() * (1 + 4 * torch.finfo(y.dtype).eps)

    def right_inverse(self, value: Tensor) -> Tensor:
        """The identity, but for rounding: a vector on the boundary is put inside of it."""
        return self._inside(value)

    def canonical(self, y: Tensor) -> tuple[Tensor]:
        """A parameter of the same element that is nearer to it."""
        if self.is_absolute_sum:
            return (lingering(y, self._inside(onto_l1_ball(y, self.greatest())), 1),)
        if self.is_euclidean and not needs_derivative(y):
            length, most = self.length(y), self.greatest()
            most = most * (1 - 2 * torch.finfo(y.dtype).eps)
            if is_moderate(length[length > most]):
                return (lingering(y, y * torch.where(length > most, most / length, 1), 1),)
        return (lingering(y, self._inside(y), 1),)

    def violation(self, value: Tensor) -> Tensor:
        """How much longer than the bound the vector is.

        For a sum of absolute values: how much less the largest entry of the nearest point is.
        """
        if self.is_absolute_sum:
            return beyond_l1_ball(value, self.greatest())
        scaled, scale = scaled_to_one(value)
        return (scale * self.length(scaled) - self.greatest()).clamp(min=0).squeeze(-1)

    def project(self, value: Tensor) -> Tensor:
        """The vector scaled back to the bound; for a sum of absolute values, the nearest point."""
        if self.is_absolute_sum:
            value = onto_l1_ball(value, self.greatest())
        return self._inside(value)

    def sample(
        self,
        shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """The direction of a normal vector, with a length that is uniform up to the bound."""
        self.check_shape(shape)
        dtype = dtype or torch.get_default_dtype()
        options = {"generator": generator, "dtype": working_dtype(dtype), "device": device}
        y = torch.randn(tuple(shape), **options)
        share = torch.rand((*y.shape[:-1], 1), **options)
        scaled, _ = scaled_to_one(y)
        return (scaled * (share * self.greatest() / self.length(scaled))).to(dtype)

    def dimension(self, shape: Sequence[int]) -> int:
        """``n``."""
        return shape[-1]

    def shape_problem(self, event: tuple[int, ...]) -> str | None:
        """An element has at least one entry."""
        return None if event[0] > 0 else "must have at least one entry"

    def _inside(self, value: Tensor) -> Tensor:
        # The identity starts at the boundary: a rounding beyond it, the derivative is another one.
        eps, bound = torch.finfo(value.dtype).eps, self.greatest()
        scaled, scale = scaled_to_one(value)
        length = scale * self.length(scaled)
        least = bound * (1 - 2 * eps) / length.clamp(min=torch.finfo(value.dtype).tiny)
        return torch.where(length > bound * (1 - 2 * eps), value * least, value)


@register("ball", aliases=("l2_ball", "norm_ball"))
class Ball(LengthBound):
    """Vectors whose p-norm is at most a radius.

    **Set**: {x in R^n : ||x||_p <= radius}. Dimension n, closed, convex.

    **Map**: the identity inside; outside y -> radius y / ||y||_p, and for p = 1 the nearest point,
    as under `L1Ball`. Onto the set.

    **Right inverse**: the identity, up to rounding on the boundary.

    **Reference**: Bertsekas, On the Goldstein-Levitin-Polyak gradient projection method (1976).

    `project` is the nearest point in the Euclidean norm for p = 1 and p = 2. For other p it scales
    the vector back along its direction.

    For p = 1 the gradient outside, and what a step is made of, are those of `L1Ball`: ``grad`` is
    not the derivative of the map there, which ``create_graph=True`` gives, and a step rewrites it.

    Args:
        radius: the largest norm, greater than zero.
        p: the order of the norm, 1 or more, finite; ``box`` is the ball of the maximum norm.

    Raises:
        ValueError: if the radius is not positive, or p is less than 1 or not finite.

    Example:
        >>> Ball(radius=5.0)(torch.tensor([[3.0, 3.0], [3.0, 4.0]]))
        tensor([[3., 3.],
                [3., 4.]])
    """

    keeps = (
        "sum_to_zero",
        "nonnegative",
        "nonpositive",
        "positive",
        "negative",
    )
    examples = (
        ({}, (1,)),
        ({}, (4,)),
        ({"radius": 2.5}, (3,)),
        ({"radius": 2.0, "p": 3.0}, (3,)),
        ({"radius": 2.0, "p": 1.0}, (3,)),
    )
    exempt = _kinks("ones", "boundary")

    def __init__(self, radius: float = 1.0, p: float = 2.0) -> None:
        super().__init__()
        self.radius = checked_positive("ball", radius, "radius")
        self.p = checked_bound("ball", p, "p")
        self.is_euclidean, self.is_absolute_sum = self.p == 2, self.p == 1
        if self.is_absolute_sum:
            self.keeps = ("nonnegative", "nonpositive")
            self.exempt = _kinks_and_outside()
        if self.p < 1:
            raise ValueError(f"ball: p must be 1 or more, got {p!r}.")
        if self.p not in (1, 2):
            self.exempt = {**self.exempt, "nearest": "scaling back is nearest for p = 2 only"}

    def greatest(self) -> float:
        """The radius."""
        return self.radius

    def length(self, value: Tensor) -> Tensor:
        """The p-norm."""
        return torch.linalg.vector_norm(value, self.p, dim=-1, keepdim=True)


@register("l1_ball", aliases=("cross_polytope",))
class L1Ball(LengthBound):
    """Vectors whose absolute values add up to a radius at most.

    **Set**: {x in R^n : |x_1| + ... + |x_n| <= radius}. Dimension n, closed, convex.

    **Map**: the identity inside; outside the nearest point, sign(y_i) max(|y_i| - t, 0) with the t
    for which the sum is the radius. Onto the set. Small entries are zero, as those of most optima
    on the boundary are; scaled back as a whole, entries that should be zero would change their sign
    at each step. `canonical` leads a parameter that a step has led outside back to the boundary.

    **Right inverse**: the identity, up to rounding on the boundary.

    **Reference**: Duchi et al., Efficient projections onto the l1-ball for learning in high
    dimensions (ICML 2008), section 4; Bertsekas, On the Goldstein-Levitin-Polyak gradient
    projection method (1976).

    `project` is the nearest point in the Euclidean norm.

    Outside of the ball the map gives an entry that it sends to 0 no derivative, so that it would
    stay 0. So `backward` gives the gradient with respect to the element there, as a
    straight-through estimator does; with ``create_graph=True``, and under `torch.func`, it is the
    derivative of the map. A step on the boundary is made of the gradient mapping of
    `constraints.l1_projection`: the parameter's ``grad`` is rewritten when the step begins. Read
    gradients before it, and call ``zero_grad`` after it.

    Args:
        radius: the largest sum, greater than zero.

    Raises:
        ValueError: if the radius is not positive and finite.

    Example:
        >>> y = torch.tensor([[0.5, -1.0, 0.0], [0.5, -3.0, 2.0]])
        >>> L1Ball(radius=2.0).project(y)
        tensor([[ 0.5000, -1.0000,  0.0000],
                [ 0.0000, -1.5000,  0.5000]])
        >>> L1Ball(radius=2.0)(y).sum(-1)
        tensor([-0.5000, -1.0000])
    """

    is_absolute_sum = True
    keeps = ("nonnegative", "nonpositive")
    examples = (
        ({}, (1,)),
        ({}, (4,)),
        ({"radius": 2.5}, (3,)),
        ({"radius": 1.0}, (50,)),
    )
    exempt = _kinks_and_outside()

    def __init__(self, radius: float = 1.0) -> None:
        super().__init__()
        self.radius = checked_positive("l1_ball", radius, "radius")

    def greatest(self) -> float:
        """The radius."""
        return self.radius

    def length(self, value: Tensor) -> Tensor:
        """The sum of the absolute values."""
        return torch.linalg.vector_norm(value, 1, dim=-1, keepdim=True)


@register("max_norm")
class MaxNorm(LengthBound):
    """Vectors, such as the weights into each unit, whose Euclidean length is at most a bound.

    **Set**: {x in R^n : ||x|| <= bound}. Dimension n, closed, convex.

    **Map**: the identity inside; outside the vector is scaled back, as under `Ball`.

    **Right inverse**: the identity, up to rounding on the boundary.

    **Reference**: Srivastava et al., Dropout: a simple way to prevent neural networks from
    overfitting (JMLR 15, 2014), section 5.1.

    The vectors are the last dimension of the tensor: the rows of the weight of ``nn.Linear``.

    Args:
        bound: the greatest length, greater than zero.

    Raises:
        ValueError: if the bound is not positive and finite.

    Example:
        >>> W = MaxNorm(bound=5.0).project(torch.tensor([[6.0, 8.0], [1.0, 2.0]]))
        >>> torch.allclose(W, torch.tensor([[3.0, 4.0], [1.0, 2.0]]))
        True
    """

    is_euclidean = True
    keeps = (
        "sum_to_zero",
        "nonnegative",
        "nonpositive",
        "positive",
        "negative",
    )
    examples = (({"bound": 1.0}, (1,)), ({"bound": 1.0}, (4,)), ({"bound": 2.5}, (3,)))
    exempt = _kinks("ones", "boundary")

    def __init__(self, bound: float) -> None:
        super().__init__()
        self.bound = checked_positive("max_norm", bound, "bound")

    def greatest(self) -> float:
        """The bound."""
        return self.bound

    def length(self, value: Tensor) -> Tensor:
        """The Euclidean norm."""
        return torch.linalg.vector_norm(value, dim=-1, keepdim=True)
