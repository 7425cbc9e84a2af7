"""Spheres: vectors and matrices of a given length, and matrices of unit columns."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from constrained import Constraint, register
from constrained.constraint.tolerance import working_dtype
from constraints.bases.arguments import checked_positive
from constraints.math.unit_vectors import distance_from_sphere, normalized, normalized_gradient


@register("sphere", aliases=("unit_norm", "unit_vector"))
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
    value_index = 0
    examples = (({}, (1,)), ({}, (3,)), ({"radius": 2.5}, (2,)), ({"radius": 1e-3}, (50,)))
    expected_failures = dict.fromkeys(
        ("first_derivative:zero_params", "second_derivative:zero_params"),
        "y / ||y|| has no limit at y = 0",
    )

    def __init__(self, radius: float = 1.0) -> None:
        super().__init__()
        self.radius = checked_positive("sphere", radius, "radius")

    def forward(self, y: Tensor) -> Tensor:
        """``radius y / ||y||``."""
        return normalized(y, self.radius)

    def right_inverse(self, value: Tensor) -> Tensor:
        """The identity."""
        return value

    def pullback(self, value: Tensor, gradient: Tensor, y: Tensor) -> tuple[Tensor]:
        """The projection onto the tangent space, scaled by ``radius / ||y||``."""
        return (normalized_gradient(y, value, gradient, self.radius),)

    def canonical(self, y: Tensor) -> tuple[Tensor]:
        """The element itself."""
        return (self.forward(y),)

    def violation(self, value: Tensor) -> Tensor:
        """The change of the largest entry when the vector is scaled to the radius."""
        return distance_from_sphere(value, self.radius)

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


@register("oblique", aliases=("unit_norm_columns",))
class Oblique(Constraint):
    """Matrices whose columns have unit length.

    **Set**: {W in R^(m x n) : ||W e_j|| = 1 for every j}, a product of n spheres. Dimension
    (m - 1) n, closed.

    **Map**: every column is divided by its length, onto the set, a zero column being taken for the
    first unit vector.

    **Right inverse**: the identity.

    **Reference**: Absil and Gallivan, Joint diagonalization on the oblique manifold for independent
    component analysis (ICASSP 2006).

    For unit rows see `Sphere`.

    Example:
        >>> Oblique()(torch.tensor([[3.0, 0.0], [4.0, 0.5]]))
        tensor([[0.6000, 0.0000],
                [0.8000, 1.0000]])
    """

    event_dim = 2
    value_index = 0
    examples = (({}, (1, 1)), ({}, (3, 2)), ({}, (2, 4)))
    expected_failures = dict.fromkeys(
        (
            f"{order}_derivative:{point}"
            for order in ("first", "second")
            for point in ("zero_params",)
        ),
        "y / ||y|| has no limit at y = 0",
    )

    def forward(self, X: Tensor) -> Tensor:
        """Every column divided by its length."""
        return normalized(X.mT, 1.0).mT.contiguous()

    def right_inverse(self, value: Tensor) -> Tensor:
        """The identity."""
        return value

    def pullback(self, value: Tensor, gradient: Tensor, X: Tensor) -> tuple[Tensor]:
        """The projection onto the tangent space, each column scaled by ``1 / ||x||``."""
        return (normalized_gradient(X.mT, value.mT, gradient.mT, 1.0).mT.contiguous(),)

    def canonical(self, X: Tensor) -> tuple[Tensor]:
        """The element itself."""
        return (self.forward(X),)

    def violation(self, value: Tensor) -> Tensor:
        """The largest change of an entry when the columns are scaled to unit length."""
        return distance_from_sphere(value.mT, 1.0).amax(-1)

    def project(self, value: Tensor) -> Tensor:
        """The nearest point in the Frobenius norm."""
        return self.forward(value)

    def sample(
        self,
        shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Columns uniform on the sphere."""
        self.check_shape(shape)
        dtype = dtype or torch.get_default_dtype()
        X = torch.randn(
            tuple(shape), generator=generator, dtype=working_dtype(dtype), device=device
        )
        return self.forward(X).to(dtype)

    def dimension(self, shape: Sequence[int]) -> int:
        """``(m - 1) n``."""
        return (shape[-2] - 1) * shape[-1]

    def shape_problem(self, event: tuple[int, ...]) -> str | None:
        """An element has entries."""
        return None if min(event) > 0 else "must have at least one row and one column"


@register("frobenius_norm", aliases=("frobenius_sphere",))
class FrobeniusNorm(Constraint):
    """Matrices of a given Frobenius norm.

    **Set**: {W in R^(m x n) : ||W||_F = radius}, a sphere. Dimension m n - 1, closed.

    **Map**: X -> radius X / ||X||_F, onto the set, the zero matrix being taken for the one whose
    first entry alone is not zero.

    **Right inverse**: the identity.

    **Reference**: Absil, Mahony and Sepulchre, Optimization Algorithms on Matrix Manifolds (2008),
    section 4.1.1.

    Args:
        radius: the norm, greater than zero.

    Raises:
        ValueError: if the radius is not positive and finite.

    Example:
        >>> FrobeniusNorm(radius=10.0)(torch.tensor([[3.0], [4.0]]))
        tensor([[6.],
                [8.]])
    """

    event_dim = 2
    value_index = 0
    examples = (({}, (1, 1)), ({}, (3, 2)), ({"radius": 2.5}, (2, 4)))
    expected_failures = dict.fromkeys(
        ("first_derivative:zero_params", "second_derivative:zero_params"),
        "X / ||X|| has no limit at X = 0",
    )

    def __init__(self, radius: float = 1.0) -> None:
        super().__init__()
        self.radius = checked_positive("frobenius_norm", radius, "radius")

    def forward(self, X: Tensor) -> Tensor:
        """``radius X / ||X||_F``."""
        return normalized(X.flatten(-2), self.radius).reshape(X.shape)

    def right_inverse(self, value: Tensor) -> Tensor:
        """The identity."""
        return value

    def pullback(self, value: Tensor, gradient: Tensor, X: Tensor) -> tuple[Tensor]:
        """The projection onto the tangent space, scaled by ``radius / ||X||``."""
        y, w, g = (t.flatten(-2) for t in (X, value, gradient))
        return (normalized_gradient(y, w, g, self.radius).reshape(X.shape),)

    def canonical(self, X: Tensor) -> tuple[Tensor]:
        """The element itself."""
        return (self.forward(X),)

    def violation(self, value: Tensor) -> Tensor:
        """The difference of the norm from the radius."""
        return distance_from_sphere(value.flatten(-2), self.radius)

    def project(self, value: Tensor) -> Tensor:
        """The nearest point in the Frobenius norm."""
        return self.forward(value)

    def sample(
        self,
        shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Matrices uniform on the sphere."""
        self.check_shape(shape)
        dtype = dtype or torch.get_default_dtype()
        X = torch.randn(
            tuple(shape), generator=generator, dtype=working_dtype(dtype), device=device
        )
        return self.forward(X).to(dtype)

    def dimension(self, shape: Sequence[int]) -> int:
        """``m n - 1``."""
        return shape[-2] * shape[-1] - 1

    def shape_problem(self, event: tuple[int, ...]) -> str | None:
        """An element has entries."""
        return None if min(event) > 0 else "must have at least one row and one column"
