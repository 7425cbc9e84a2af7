"""Linear spaces of tensors: the map is the orthogonal projection."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from constrained.constraint.linear_form import LinearForm, equations
from constrained.constraint.sampling import RandomNumbers
from constrained.torch_internals import linalg
from constraints.bases.retraction import Retraction


class LinearSpace(Retraction):
    """Base of constraints whose set is a linear space.

    A subclass defines the orthogonal projection P as `part`. The map is P and the right inverse is
    the identity. Since P is linear, its derivative is P everywhere, every direction in the set has
    a gradient, and a step of plain SGD in the free parameter is the projected step in the set.
    """

    event_dim: int  # pyright: ignore[reportIncompatibleVariableOverride] - never None here

    @abstractmethod
    def part(self, X: Tensor) -> Tensor:
        """The orthogonal projection of X onto the space; members are returned as they are."""

    def forward(self, X: Tensor) -> Tensor:
        """The orthogonal projection."""
        return self.part(X)

    def pullback(self, value: Tensor, gradient: Tensor, X: Tensor) -> tuple[Tensor]:
        """The orthogonal projection of the gradient: the projection is its own adjoint."""
        return (self.part(gradient),)

    def tangent(self, value: Tensor, vector: Tensor) -> Tensor:
        """The orthogonal projection onto the space itself."""
        del value
        return self.part(vector)

    def averaged(self, scale: Tensor) -> Tensor | None:
        """The means of the scale over the entries that `part` averages, up to signs, in each place.

        A class defines it if `part` does that, as for symmetric matrices. Otherwise it is None.
        """
        del scale
        return None

    def project_scaled(self, value: Tensor, scale: Tensor) -> Tensor | None:
        """Weighted means in the place of means, where `part` makes such."""
        mean = self.averaged(scale)
        if mean is None:
            return None
        # Means in units of the largest weight, so that no product leaves the range.
        unit = scale.abs().amax(tuple(range(-self.event_dim, 0)), keepdim=True)
        return self.part(value * (scale / unit)) / (mean / unit)

    def violation(self, value: Tensor) -> Tensor:
        """The largest entry of the difference from the projection."""
        rest = (value - self.part(value)).abs()
        event = tuple(range(-self.event_dim, 0))
        # Without entries, as in an empty batch, there is no largest one.
        return rest.amax(event) if rest.numel() else rest.sum(event)

    def linear_form(self, shape: Sequence[int]) -> LinearForm | None:
        """Equations whose rows are an orthonormal basis of what `part` takes off."""
        if self.complex:
            return None
        n = torch.Size(shape).numel()
        identity = torch.eye(n, dtype=torch.float64)
        lost = identity - self.part(identity.reshape(n, *shape)).reshape(n, n)
        # A projection has the eigenvalues 0 and 1.
        values, vectors = linalg.eigh(lost)
        rows = vectors[:, values > 0.5].mT
        return equations(rows, rows.new_zeros(len(rows)))

    def draw(self, shape: tuple[int, ...], random: RandomNumbers) -> Tensor:
        """The projection of a standard normal tensor: standard normal in the space."""
        return self.part(random.normal(shape))


class ZeroPattern(LinearSpace):
    """Base of linear spaces of tensors that are zero at given places: `part` writes the zeros."""

    def linear_form(self, shape: Sequence[int]) -> None:
        """None: the entries that are not zero are free parameters as they are."""
        del shape

    def project_scaled(self, value: Tensor, scale: Tensor) -> Tensor:
        """`part`, whatever the weights: each entry is free or zero by itself."""
        del scale
        return self.part(value)
