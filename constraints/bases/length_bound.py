"""Vectors whose p-norm is bounded."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from constrained.constraint.optional_methods import recomputed
from constrained.constraint.sampling import RandomNumbers
from constrained.torch_internals import linalg
from constraints.bases.boundary import relax_to_boundary
from constraints.bases.expected_failures import failing, no_derivative
from constraints.bases.shapes import Vectors
from constraints.math.autograd import goes_by_operator, needs_derivative
from constraints.math.l1_projection import beyond_l1_ball, l1_ball_gradient, onto_l1_ball
from constraints.math.rows_in_place import shorten_
from constraints.math.scaled_ball import onto_scaled_ball
from constraints.math.scaled_threshold import onto_scaled_l1_ball
from constraints.math.unit_vectors import is_moderate
from constraints.math.unit_vectors import scaled as scaled_to_one

KINK = "a kink on the boundary: the identity inside, a scaling or a projection outside"


def kinks_and_outside() -> dict[str, str]:
    """The laws that fail for p = 1, where the gradient outside is not the derivative of the map."""
    why = (
        "outside it is the gradient at the element, of which a step is made: an entry that the map "
        "sends to 0 has no other"
    )
    kinks = no_derivative(KINK, "ones", "boundary")
    return {**kinks, **failing(why, "pullback_is_the_gradient", "compiles")}


class LengthBound(Vectors):
    """Base of sets of vectors whose p-norm is at most a bound.

    The map is the identity inside. Outside, a vector is scaled back to the boundary, or for p = 1
    goes to the nearest point, where small entries are zero. `canonical` moves a parameter that a
    step has led outside back to the boundary little by little: see `relax_to_boundary`.
    """

    #: The p of the norm, from 1 on.
    order: float = 2.0

    @property
    @abstractmethod
    def greatest(self) -> float:
        """The bound."""

    def length(self, value: Tensor) -> Tensor:
        """The norm of each vector, of shape ``(*batch, 1)``."""
        return linalg.vector_norm(value, self.order, dim=-1, keepdim=True)

    def forward(self, y: Tensor) -> Tensor:
        """A vector inside itself; for one outside, a vector on the boundary."""
        if self.order == 1:
            value = onto_l1_ball(y, self.greatest)
            # Compiled code does not call `pullback`, which gives this gradient.
            return value.detach() + (y - y.detach()) if goes_by_operator() else value
        # Only for p = 2: other powers are computed by logarithms, whose size enters the error.
        if self.order == 2 and not needs_derivative(y):
            length = self.length(y)
            if is_moderate(length[length > self._most(y)]):
                return y * self._factor(length)
        scaled, scale = scaled_to_one(y)
        length, bound = scale * self.length(scaled), self.greatest
        outside = length > bound
        # Infinity in the branch that is not selected would make the gradient NaN.
        factor = bound / torch.where(outside, length, 1)
        return torch.where(outside, y * factor, y)

    def has_pullback(self) -> bool:
        """For p = 1 and p = 2."""
        return self.order in (1, 2)

    def pullback(self, value: Tensor, gradient: Tensor, y: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient itself inside; outside its component along the boundary, scaled as y is.

        For p = 1 it is the gradient itself everywhere, from which `step_gradient` makes a step. The
        derivative of the map outside would be zero for each entry that the map sends to 0.
        """
        if self.order == 1:
            return (gradient,)
        length = self.length(y)
        outside = length > self._most(y)
        if not (y.is_cpu and is_moderate(length[outside])):
            return recomputed(self, gradient, (y,))
        factor = self._factor(length)
        along = linalg.vecdot(gradient, y).unsqueeze(-1)
        along = torch.where(outside, factor * along / length.square(), 0)
        return ((gradient * factor).addcmul_(y, along, value=-1),)

    def step_gradient(self, gradient: Tensor, *params: Tensor) -> Tensor:
        """For p = 1 the gradient mapping of `l1_ball_gradient`."""
        if self.order != 1:
            return gradient
        value = onto_l1_ball(params[0], self.greatest)
        return l1_ball_gradient(gradient, value, self.greatest)

    def has_step_gradient(self) -> bool:
        """For p = 1."""
        return self.order == 1

    def _factor(self, length: Tensor) -> Tensor:
        return torch.where(length > self._most(length), self.greatest / length, 1)

    def _most(self, y: Tensor) -> float:
        # Summed in another order, a length may exceed the bound by some rounding errors.
        return self.greatest * (1 + 4 * torch.finfo(y.dtype).eps)

    def right_inverse(self, value: Tensor) -> Tensor:
        """The identity, except that a vector on the boundary is moved inside by a rounding."""
        return self._inside(value)

    def canonical(self, y: Tensor) -> tuple[Tensor]:
        """A parameter of the same element, nearer to the boundary if it is outside."""
        if self.order == 1:
            return (relax_to_boundary(y, self._inside(onto_l1_ball(y, self.greatest)), 1),)
        if self.order == 2 and not needs_derivative(y):
            length, most = self.length(y), self.greatest
            most = most * (1 - 2 * torch.finfo(y.dtype).eps)
            if is_moderate(length[length > most]):
                return (relax_to_boundary(y, y * torch.where(length > most, most / length, 1), 1),)
        return (relax_to_boundary(y, self._inside(y), 1),)

    def violation(self, value: Tensor) -> Tensor:
        """The excess of the norm over the bound.

        For p = 1 it is the largest change of an entry by the projection.
        """
        if self.order == 1:
            return beyond_l1_ball(value, self.greatest)
        scaled, scale = scaled_to_one(value)
        return (scale * self.length(scaled) - self.greatest).clamp(min=0).squeeze(-1)

    def slack(self, value: Tensor) -> Tensor:
        """The bound less the norm."""
        scaled, scale = scaled_to_one(value)
        return (self.greatest - scale * self.length(scaled)).squeeze(-1)

    def project(self, value: Tensor) -> Tensor:
        """The nearest point: the vector scaled back to the bound if p = 2."""
        if self.order == 1:
            value = onto_l1_ball(value, self.greatest)
        elif self.order != 2:
            value = onto_scaled_ball(value, torch.ones_like(value), self.greatest, self.order)
        return self._inside(value)

    def nearby(self, value: Tensor) -> Tensor:
        """For p = 1 and p = 2 the nearest point, else the map, which can be differentiated."""
        return self.project(value) if self.order in (1, 2) else self(value)

    def project_scaled(self, value: Tensor, scale: Tensor) -> Tensor:
        """``x s / (s + t)`` for p = 2, where t solves a secular equation; soft thresholds for 1."""
        if self.order == 1:
            return self._inside(onto_scaled_l1_ball(value, scale, self.greatest))
        return self._inside(onto_scaled_ball(value, scale, self.greatest, self.order))

    def retract_(self, value: Tensor) -> None:
        """`project`; for p = 2 it reads the tensor once, and writes the vectors outside only."""
        if self.order != 2 or not value.numel() or not shorten_(value, self.greatest):
            value.copy_(self.retract(value))

    def draw(self, shape: tuple[int, ...], random: RandomNumbers) -> Tensor:
        """The direction of a normal vector, with a length that is uniform up to the bound."""
        direction, _ = scaled_to_one(random.normal(shape))
        share = random.uniform((*shape[:-1], 1))
        return direction * (share * self.greatest / self.length(direction))

    def _inside(self, value: Tensor) -> Tensor:
        # Moved inside by a rounding, where the derivative is the identity; outside it is not.
        eps, bound = torch.finfo(value.dtype).eps, self.greatest
        scaled, scale = scaled_to_one(value)
        length = scale * self.length(scaled)
        least = bound * (1 - 2 * eps) / length.clamp(min=torch.finfo(value.dtype).tiny)
        return torch.where(length > bound * (1 - 2 * eps), value * least, value)
