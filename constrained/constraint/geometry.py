"""What a constraint knows of its set as a place to walk on: tangents, and the way back.

With ``mode="project"`` a tensor stays a plain parameter, and the hooks of optimizers use these
methods: before a step the gradient is made tangent, after it the point is brought back.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from constrained.constraint.membership import Membership
from constrained.constraint.optional_methods import OptionalMethods
from constrained.constraint.precision import raise_precision

#: How far `Geometry.admissible` looks from a member, relative to the size of the member.
_REACH = 0.1


class Geometry(OptionalMethods, Membership):
    """Defaults of the methods that say how to walk on a set.

    A set is smooth if it has a tangent space at each member, as a sphere has. Its class then
    defines `tangent`. Other sets have a boundary, as a ball has.
    """

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
