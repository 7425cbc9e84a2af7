"""Linear spaces of tensors: the map is the orthogonal projection."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from constrained import Constraint
from constrained.constraint.tolerance import working_dtype


class LinearSpace(Constraint):
    """What the constraints share whose set is a linear space.

    A subclass says what the orthogonal projection P is. The map is P, from all of space, and the
    right inverse the identity: P is linear, so its derivative is P everywhere, no direction in the
    set is dead, and a step of plain SGD in the free parameter is the projected step in the set.
    """

    event_dim: int

    @abstractmethod
    def part(self, X: Tensor) -> Tensor:
        """The orthogonal projection of X onto the space; members come back as they are."""

    def forward(self, X: Tensor) -> Tensor:
        """The orthogonal projection."""
        return self.part(X)

    def pullback(self, value: Tensor, gradient: Tensor, X: Tensor) -> tuple[Tensor]:
        """The orthogonal projection of the gradient, since it is its own adjoint."""
        return (self.part(gradient),)

    def right_inverse(self, value: Tensor) -> Tensor:
        """The identity."""
        return value

    def violation(self, value: Tensor) -> Tensor:
        """The largest entry of what the projection takes away."""
        rest = (value - self.part(value)).abs()
        event = tuple(range(-self.event_dim, 0))
        # Without entries, as in an empty batch, there is no largest one.
        return rest.amax(event) if rest.numel() else rest.sum(event)

    def project(self, value: Tensor) -> Tensor:
        """The nearest point in the Frobenius norm, the orthogonal projection."""
        return self.part(value)

    def sample(
        self,
        shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """The projection of a standard normal tensor: standard normal in the space."""
        self.check_shape(shape)
        dtype = dtype or torch.get_default_dtype()
        X = torch.randn(
            tuple(shape), generator=generator, dtype=working_dtype(dtype), device=device
        )
        return self.part(X).to(dtype)


def not_square(event: tuple[int, ...]) -> str | None:
    """The problem of an event shape that is no square matrix, or an empty one."""
    return None if event[-2] == event[-1] > 0 else "must be a square matrix with a row or more"


def empty(event: tuple[int, ...]) -> str | None:
    """The problem of an event shape without entries."""
    return None if min(event) > 0 else "must have at least one row and one column"
