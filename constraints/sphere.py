"""Vectors of a given Euclidean length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor

from constrained import Constraint, register
from constrained.tolerance import working_dtype


@register("sphere", aliases=("unit_norm",))
class Sphere(Constraint):
    """Vectors of a given Euclidean length.

    **Set**: {x in R^n : ||x|| = radius}. Dimension n - 1, closed.

    **Map**: y -> radius y / ||y||, onto the set, the zero vector being taken for the first unit
    vector.

    **Right inverse**: the identity.

    **Reference**: Absil, Mahony and Sepulchre, Optimization Algorithms on Matrix Manifolds (2008),
    section 4.1.1. The derivative at a point of the sphere is the projection onto its tangent space.

    `canonical` puts the parameter back onto the sphere, so that its gradient, which is inversely
    proportional to ||y||, keeps its size.

    Args:
        radius: the length, greater than zero.

    Example:
        >>> sphere = Sphere(radius=10.0)
        >>> sphere(torch.tensor([3e-30, 4e-30]))
        tensor([6., 8.])
        >>> sphere(torch.zeros(2))
        tensor([10.,  0.])
    """

    event_dim = 1
    examples = (({}, (1,)), ({}, (3,)), ({"radius": 2.5}, (2,)), ({"radius": 1e-3}, (50,)))
    exempt = dict.fromkeys(
        ("first_derivative:zero_params", "second_derivative:zero_params"),
        "y / ||y|| has no limit at y = 0",
    )

    def __init__(self, radius: float = 1.0) -> None:
        super().__init__()
        if not isinstance(radius, Real) or isinstance(radius, bool):
            raise TypeError(f"sphere: radius must be a number, got {radius!r}.")
        if not 0 < radius < math.inf:
            raise ValueError(f"sphere: radius must be positive and finite, got {radius!r}.")
        self.radius = float(radius)

    def forward(self, y: Tensor) -> Tensor:
        """``radius y / ||y||``."""
        scaled, _ = _scaled(y)
        return self.radius * scaled / torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)

    def right_inverse(self, value: Tensor) -> Tensor:
        """The identity."""
        return value

    def canonical(self, y: Tensor) -> tuple[Tensor]:
        """The element itself."""
        return (self.forward(y),)

    def violation(self, value: Tensor) -> Tensor:
        """The change of the largest entry when the vector is scaled to the radius."""
        scaled, scale = _scaled(value)
        norm = torch.linalg.vector_norm(scaled, dim=-1)
        return (scale.squeeze(-1) * norm - self.radius).abs() / norm.detach()

    def project(self, value: Tensor) -> Tensor:
        """The nearest point in the Euclidean norm; for zero, which has none, a unit vector's."""
        return self.forward(value)

    def sample(
        self,
        shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Vectors uniform on the sphere."""
        self.check_shape(shape)
        dtype = dtype or torch.get_default_dtype()
        normal = torch.randn(shape, generator=generator, dtype=working_dtype(dtype), device=device)
        return self.forward(normal).to(dtype)

    def dimension(self, shape: Sequence[int]) -> int:
        """``n - 1``."""
        return shape[-1] - 1

    def shape_problem(self, event: tuple[int, ...]) -> str | None:
        """An element has at least one entry."""
        return None if event[0] > 0 else "must have at least one entry"


def _scaled(y: Tensor) -> tuple[Tensor, Tensor]:
    """``(y / s, s)`` with s the largest absolute entry, held constant.

    The entries of ``y / s`` are at most 1 and one of them is 1, whatever the size of y, so that
    their squares neither overflow nor underflow. A function of the direction of y alone does not
    depend on s, and has all its derivatives with s held constant.

    A zero vector gives ``y + e_1`` with s = 0: its derivative, the tangent projection at ``e_1``,
    takes the place of one that does not exist.
    """
    largest = y.detach().abs().amax(-1, keepdim=True)
    zero = largest < torch.finfo(y.dtype).tiny
    first = (torch.arange(y.shape[-1], device=y.device) == 0).to(y.dtype)
    scaled = torch.where(zero, y + first, y / torch.where(zero, 1.0, largest))
    return scaled, torch.where(zero, 0.0, largest)
