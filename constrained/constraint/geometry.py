"""What a constraint knows of its set as a place to walk on: tangents, and the way back.

With ``mode="project"`` a tensor stays a plain parameter, and the hooks of optimizers use these
methods: before a step the gradient is made tangent, after it the point is brought back.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from constrained.constraint.linear_form import LinearForm
from constrained.constraint.membership import Membership
from constrained.constraint.optional_methods import OptionalMethods
from constrained.constraint.precision import raise_precision

#: What a fast method stands for. Where a derived class defines one of these anew, it is not used.
_STANDS_FOR = {
    "tangent_": ("tangent",),
    "retract_": ("retract", "project", "canonical", "forward"),
    "landing_": ("tangent", "retract", "project", "canonical", "forward"),
}

#: How far `Geometry.admissible` looks from a member, relative to the size of the member.
_REACH = 0.1


class Geometry(OptionalMethods, Membership):
    """Defaults of the methods that say how to walk on a set.

    A set is smooth if it has a tangent space at each member, as a sphere has. Its class then
    defines `tangent`. Other sets have a boundary, as a ball has.

    Attributes:
        why_not_project: why ``mode="project"`` is refused, "" if it is not. A class has a reason if
            its set has a boundary and no nearest members that could be computed, since a way back
            to another member may undo each step.
    """

    why_not_project: ClassVar[str] = ""

    def project(self, value: Tensor) -> Tensor:
        """See `Constraint`."""
        raise NotImplementedError

    def tangent(self, value: Tensor, vector: Tensor) -> Tensor:
        """The orthogonal projection of a vector onto the tangent space at a member.

        A class defines it if its set is smooth: without a boundary.

        Args:
            value: members, of shape ``(*batch, *event)``.
            vector: of the shape of ``value``.

        Returns:
            Tensor of the shape of ``value``. By default the vector itself, as in a set with
            interior points.
        """
        del value
        return vector

    def is_smooth(self) -> bool:
        """Whether the class defines `tangent`."""
        return type(self).tangent is not Geometry.tangent

    def has_boundary(self) -> bool:
        """Whether walks on the set may end at a boundary: by default, unless it is smooth."""
        return not self.is_smooth()

    def riemannian_gradient(self, value: Tensor, gradient: Tensor) -> Tensor:
        """The gradient of a function on the set, as a tangent vector.

        A tangent vector is given by coordinates that are orthonormal in the Riemannian metric of
        the set: the inner product of two vectors is the sum of the products of their entries. By
        default it is a vector of the surrounding space, and this is `admissible` if the set is
        smooth. Where a set has a boundary it is the gradient itself: steps end with a projection.

        Args:
            value: members, of shape ``(*batch, *event)``.
            gradient: the partial derivatives, of the shape of ``value``.

        Returns:
            Tensor of the shape of ``value``, whose inner product with each tangent vector is the
            derivative along that.
        """
        return self.admissible(value, gradient) if self.is_smooth() else gradient

    def move(self, value: Tensor, vector: Tensor) -> Tensor:
        """The members that a step along tangent vectors leads to.

        By default `retract` of the sum.

        Args:
            value: members, of shape ``(*batch, *event)``.
            vector: of the shape of ``value``, as `riemannian_gradient` gives it.
        """
        return self.retract(value + vector)

    def transport(self, vector: Tensor, new: Tensor) -> Tensor:
        """A tangent vector at one member as one at another, nearby.

        By default the orthogonal projection onto the tangent space there. Where a set has a
        boundary, `admissible` of the vector, which is taken for a gradient.

        Args:
            vector: of shape ``(*batch, *event)``, as `riemannian_gradient` gives it.
            new: the other members, of the same shape.

        Reference:
            Absil, Mahony and Sepulchre, Optimization algorithms on matrix manifolds (2008), section
            8.1.3.
        """
        return self.tangent(new, vector) if self.is_smooth() else self.admissible(new, vector)

    def retract(self, value: Tensor) -> Tensor:
        """The members that are reached where a step from members has led to ``value``.

        By default the projections, or, if the set is smooth and the members are their own
        parameters, the canonical ones, which agree with the projections to second order in the
        length of the step. Where a set has a boundary, the canonical parameters of what is outside
        may lie inside, and only the projections are at the boundary.

        Args:
            value: of shape ``(*batch, *event)``, near the set.
        """
        if self.is_smooth() and self._is_own_parameter():
            return self.canonical(value)[0]
        return self.project(value)

    def tangent_(self, value: Tensor, gradient: Tensor) -> bool:
        """Make a gradient tangent in place: a fast `tangent` for optimizer steps.

        A class may define it besides `tangent`. A class derived from that one, with another
        `tangent` but no `tangent_`, does not use it.

        Args:
            value: members, of shape ``(*batch, *event)``, contiguous, real, in single or double
                precision.
            gradient: of the shape and dtype of ``value``, contiguous. It is overwritten.

        Returns:
            Whether the gradient was finite. If not, it is as it was.
        """
        found = self.tangent(value, gradient)
        if not torch.isfinite(found).all():
            return False
        gradient.copy_(found)
        return True

    def retract_(self, value: Tensor) -> None:
        """Write `retract` of a tensor into it: a fast one for optimizer steps.

        As with `tangent_`, a derived class with another set does not use it.

        Args:
            value: of shape ``(*batch, *event)``, near the set, contiguous, real, in single or
                double precision.
        """
        value.copy_(self.retract(value))

    def landing_(self, value: Tensor, gradient: Tensor, rate: float, notes: dict[str, Any]) -> bool:
        """Change a gradient so that the step ``value - rate * gradient`` ends in the set.

        The step is that of a retraction along the tangent part of the gradient. It saves `retract_`
        where the whole of it can be had for less. The end is checked by `has_landed`.

        Args:
            value: members, as for `tangent_`.
            gradient: as for `tangent_`. It is overwritten if the result is True.
            rate: the factor of the gradient in the step.
            notes: what the class has noted in earlier steps of the same tensor.

        Returns:
            Whether it did so. By default it does not.
        """
        del value, gradient, rate, notes
        return False

    def has_landed(self, value: Tensor, notes: dict[str, Any]) -> bool:
        """Whether a step after `landing_` has ended in the set, up to rounding.

        Args:
            value: where it has ended.
            notes: those of `landing_`.
        """
        del value, notes
        return False

    def is_in_place(self) -> bool:
        """Whether the class defines `retract_`, and `tangent_` if the set is smooth."""
        needed = ("retract_", "tangent_") if self.is_smooth() else ("retract_",)
        return self.has_own_map() and all(_is_latest(type(self), name) for name in needed)

    def lands(self) -> bool:
        """Whether the class defines `landing_`."""
        return self.has_own_map() and _is_latest(type(self), "landing_")

    def nearby(self, value: Tensor) -> Tensor:
        """The members near any tensors, as a differentiable function of these.

        By default `forward` if its parameters are the members themselves, else `project`.

        Args:
            value: of shape ``(*batch, *event)``.
        """
        return self(value) if self._is_own_parameter() else self.project(value)

    def _is_own_parameter(self) -> bool:
        own: Any = self
        return self.value_index == 0 and own.param_count() == 1 and self.has_canonical()

    def project_scaled(self, value: Tensor, scale: Tensor) -> Tensor | None:
        r"""The members nearest to ``value`` if each entry has a weight of its own.

        They minimize :math:`\sum_i s_i (z_i - x_i)^2` over the members z. An optimizer such as Adam
        divides each entry of its step by a scale of its own, and the nearest member in this metric
        is where training comes to rest at an optimum, while at the nearest one in the Euclidean
        norm it does not.

        Args:
            value: of shape ``(*batch, *event)``.
            scale: the positive weights, of the shape of ``value``.

        Returns:
            Tensor of the shape of ``value``, or None if there is no formula. By default there is
            one for sets of numbers only: `project`, since a number has one weight.
        """
        del scale
        return self.project(value) if self.event_dim == 0 else None

    def linear_form(self, shape: Sequence[int]) -> LinearForm | None:
        """The closure of the set as bounds and linear equations or inequalities, for one element.

        `constrained.minimize` gives them to methods that take such constraints. A class defines it
        if its set has this form, with few enough inequalities to be written down.

        Args:
            shape: of one element.

        Returns:
            The form, whose entries are those of the element in row-major order, or None, which is
            the default.
        """
        del shape
        return None

    def admissible(self, value: Tensor, gradient: Tensor) -> Tensor:
        r"""A gradient that points out of the set at no member, and vanishes at an optimum only.

        For a smooth set it is `tangent`. For others the gradient mapping
        :math:`(x - P(x - t g)) / t`, where P is the projection and t so that a step of a tenth of
        the size of x is tried.

        Args:
            value: members, of shape ``(*batch, *event)``.
            gradient: of the shape of ``value``.

        Returns:
            Tensor of the shape of ``value``.

        Reference:
            Nesterov, Lectures on Convex Optimization (2018), section 2.2.4, for the gradient
            mapping.
        """
        if self.is_smooth():
            return self.tangent(value, gradient)
        dtype = gradient.dtype
        dims = tuple(range(value.ndim - self.event_dim, value.ndim)) if self.event_dim else ()
        if self.event_dim is None:
            dims = tuple(range(value.ndim))
        value, gradient = raise_precision(value), raise_precision(gradient)
        longest = gradient.abs().amax(dims, keepdim=True) if dims else gradient.abs()
        size = value.abs().amax(dims, keepdim=True) if dims else value.abs()
        unit = torch.finfo(longest.dtype).tiny
        reach = _REACH * size.clamp(min=1e-3)
        step = torch.where(longest > unit, reach / longest.clamp(min=unit), 1)
        ahead = value - step * gradient
        back = self.retract(ahead)
        stays = (back == ahead).all(dims, keepdim=True) if dims else back == ahead
        # Where the step ends inside there is nothing to be divided, and no digit is lost.
        return torch.where(stays, gradient, (value - back) / step).to(dtype)


@functools.cache
def _is_latest(cls: type[Geometry], fast: str) -> bool:
    """Whether a class has a fast method that no later definition of its set has overtaken."""

    def owner(name: str) -> int:
        return next(i for i, kind in enumerate(cls.__mro__) if name in vars(kind))

    own = owner(fast)
    is_default = fast in vars(Geometry) and cls.__mro__[own] is Geometry
    return not is_default and all(own <= owner(name) for name in _STANDS_FOR[fast])
