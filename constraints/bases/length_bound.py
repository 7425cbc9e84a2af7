"""Vectors whose length, in some norm, is bounded."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from constrained import Constraint
from constrained.constraint.fast_paths import recomputed
from constrained.constraint.tolerance import working_dtype
from constraints.bases.boundary import relax_to_boundary
from constraints.math.autograd import goes_by_operator, needs_derivative
from constraints.math.l1_projection import beyond_l1_ball, l1_ball_gradient, onto_l1_ball
from constraints.math.unit_vectors import is_moderate
from constraints.math.unit_vectors import scaled as scaled_to_one

_KINK = "a kink on the boundary: the identity inside, a scaling or a projection outside"


def kinks(*points: str) -> dict[str, str]:
    """Exemptions from the laws of derivatives at these points."""
    orders = ("first", "second")
    return dict.fromkeys([f"{o}_derivative:{point}" for o in orders for point in points], _KINK)


def kinks_and_outside() -> dict[str, str]:
    """Exemptions where a gradient outside is not the derivative of the map."""
    why = (
        "outside it is the gradient at the element, of which a step is made: an entry that the map "
        "sends to 0 has no other"
    )
    return {**kinks("ones", "boundary"), "pullback_is_the_gradient": why, "compiles": why}


class LengthBound(Constraint):
    """What sets of vectors share whose length may be anything up to a bound, in some norm.

    The map is the identity inside. Outside, a vector is scaled back to the boundary, or for the sum
    of absolute values goes to the nearest point, where small entries are zero. `canonical` takes a
    parameter that a step has led outside back there, little by little: see `relax_to_boundary`.
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
            return (relax_to_boundary(y, self._inside(onto_l1_ball(y, self.greatest())), 1),)
        if self.is_euclidean and not needs_derivative(y):
            length, most = self.length(y), self.greatest()
            most = most * (1 - 2 * torch.finfo(y.dtype).eps)
            if is_moderate(length[length > most]):
                return (relax_to_boundary(y, y * torch.where(length > most, most / length, 1), 1),)
        return (relax_to_boundary(y, self._inside(y), 1),)

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
