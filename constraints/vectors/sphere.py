"""Spheres: vectors and matrices of a given length, and matrices of unit columns."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from constrained import register
from constrained.constraint.sampling import RandomNumbers
from constraints.bases.argument_checks import PositiveNumber, checked_positive
from constraints.bases.expected_failures import NO_DIRECTION, no_derivative
from constraints.bases.retraction import Retraction
from constraints.bases.shapes import Matrices, Vectors
from constraints.math.rows_in_place import has_moderate_squares, make_tangent_, normalize_
from constraints.math.unit_vectors import (
    distance_from_sphere,
    normalized,
    normalized_gradient,
    steepest_on_sphere,
)


class Spheres(Retraction):
    """Base of products of spheres: an element consists of vectors that all have the same length.

    The map divides each vector by its length. `canonical` replaces the parameter by the element, so
    that its gradient, which is inversely proportional to ||y||, keeps its size.
    """

    value_index = 0
    expected_failures = no_derivative(NO_DIRECTION, "zero_params")
    radius: float

    def vectors(self, value: Tensor) -> Tensor:
        """The vectors of an element, along the last dimension of the result."""
        return value

    def element(self, vectors: Tensor, like: Tensor) -> Tensor:
        """The inverse of `vectors`: the element, of the shape of ``like``."""
        del like
        return vectors

    def forward(self, y: Tensor) -> Tensor:
        """``radius y / ||y||`` for each vector y."""
        return self.element(normalized(self.vectors(y), self.radius), y)

    def pullback(self, value: Tensor, gradient: Tensor, y: Tensor) -> tuple[Tensor]:
        """The projection onto the tangent space, scaled by ``radius / ||y||``."""
        vectors, values, gradients = map(self.vectors, (y, value, gradient))
        found = normalized_gradient(vectors, values, gradients, self.radius)
        return (self.element(found, y),)

    def tangent(self, value: Tensor, vector: Tensor) -> Tensor:
        """The projection of each vector onto the plane that is orthogonal to the element."""
        return self.pullback(value, vector, value)[0]

    def canonical(self, y: Tensor) -> tuple[Tensor]:
        """The element itself."""
        return (self.forward(y),)

    def steepest(self, value: Tensor, gradient: Tensor) -> Tensor:
        """The tangent part of the gradient of each vector, negative, and as long as the radius."""
        vectors, gradients = self.vectors(value), self.vectors(gradient)
        return self.element(steepest_on_sphere(vectors, gradients, self.radius), value)

    def violation(self, value: Tensor) -> Tensor:
        """The change of the largest entry when the vector is scaled to the radius."""
        return distance_from_sphere(self.vectors(value), self.radius)

    def draw(self, shape: tuple[int, ...], random: RandomNumbers) -> Tensor:
        """Vectors uniform on the sphere, independent of each other."""
        return self.forward(random.normal(shape))


@register("sphere", aliases=("unit_norm", "unit_vector"))
class Sphere(Vectors, Spheres):
    r"""Vectors of a given Euclidean length.

    **Use**: directions: unit-norm embeddings and class prototypes (cosine similarity, ArcFace),
    dictionary atoms, the rows of normalized networks.

    **Set**: $\{x \in \mathbb{R}^n : \lVert x \rVert = r\}$. Dimension $n - 1$, closed.

    **Map**: $y \mapsto r y / \lVert y \rVert$, onto the set. The zero vector is mapped to a
    multiple of the first unit vector.

    **Right inverse**: the identity.

    **Reference**: Absil, Mahony and Sepulchre, Optimization Algorithms on Matrix Manifolds (2008),
    section 4.1.1. The derivative at a point of the sphere is the projection onto its tangent space.

    `project` is the nearest point in the Euclidean norm. For zero all points are equally near, and
    it gives the value of the map.

    Args:
        radius: the length $r$, greater than zero.

    Raises:
        ValueError: if the radius is not positive and finite.

    Example:
        >>> import torch
        >>> sphere = Sphere(radius=10.0)
        >>> sphere(torch.tensor([3e-30, 4e-30]))
        tensor([6., 8.])
        >>> sphere(torch.zeros(2))
        tensor([10.,  0.])
    """

    examples = (({}, (1,)), ({}, (3,)), ({"radius": 2.5}, (2,)), ({"radius": 1e-3}, (50,)))

    def __init__(self, radius: PositiveNumber = 1.0) -> None:
        super().__init__()
        self.radius = checked_positive("sphere", radius, "radius")

    def tangent_(self, value: Tensor, gradient: Tensor) -> bool:
        """`tangent` in place, for a radius whose square is moderate."""
        if value.numel() and has_moderate_squares(self.radius, self.radius, value.dtype):
            return make_tangent_(value, gradient, self.radius)
        return super().tangent_(value, gradient)

    def retract_(self, value: Tensor) -> None:
        """`retract` in place."""
        if not value.numel() or not normalize_(value, self.radius):
            value.copy_(self.retract(value))

    def dimension(self, shape: Sequence[int]) -> int:
        """``n - 1``."""
        return shape[-1] - 1


@register("oblique", aliases=("unit_norm_columns",))
class Oblique(Matrices, Spheres):
    r"""Matrices whose columns have unit length.

    **Use**: dictionaries whose atoms are columns of unit length: sparse coding, independent
    component analysis, factor models with a fixed scale.

    **Set**: $\{W \in \mathbb{R}^{m \times n} : \lVert W e_j \rVert = 1 \text{ for every } j\}$, a
    product of $n$ spheres. Dimension $(m - 1) n$, closed.

    **Map**: $w_j = x_j / \lVert x_j \rVert$ for every column, onto the set. A zero column is mapped
    to the first unit vector.

    **Right inverse**: the identity.

    **Reference**: Absil and Gallivan, Joint diagonalization on the oblique manifold for independent
    component analysis (ICASSP 2006).

    `project` is the nearest point in the Frobenius norm. For unit rows see `Sphere`.

    Example:
        >>> import torch
        >>> Oblique()(torch.tensor([[3.0, 0.0], [4.0, 0.5]]))
        tensor([[0.6000, 0.0000],
                [0.8000, 1.0000]])
    """

    examples = (({}, (1, 1)), ({}, (3, 2)), ({}, (2, 4)))
    radius = 1.0

    def vectors(self, value: Tensor) -> Tensor:
        """The columns, as rows."""
        return value.mT

    def element(self, vectors: Tensor, like: Tensor) -> Tensor:
        """The rows, as columns."""
        del like
        return vectors.mT.contiguous()

    def violation(self, value: Tensor) -> Tensor:
        """The largest change of an entry when the columns are scaled to unit length."""
        return distance_from_sphere(value.mT, 1.0).amax(-1)

    def dimension(self, shape: Sequence[int]) -> int:
        """``(m - 1) n``."""
        return (shape[-2] - 1) * shape[-1]


@register("frobenius_norm", aliases=("frobenius_sphere",))
class FrobeniusNorm(Matrices, Spheres):
    r"""Matrices of a given Frobenius norm.

    **Use**: a whole weight of fixed size whose direction alone is learned, as for layers before a
    normalization, and for matched filters.

    **Set**: $\{W \in \mathbb{R}^{m \times n} : \lVert W \rVert_F = r\}$, a sphere. Dimension
    $m n - 1$, closed.

    **Map**: $X \mapsto r X / \lVert X \rVert_F$, onto the set. The zero matrix is mapped to the
    matrix whose first entry is $r$ and all others zero.

    **Right inverse**: the identity.

    **Reference**: Absil, Mahony and Sepulchre, Optimization Algorithms on Matrix Manifolds (2008),
    section 4.1.1.

    `project` is the nearest point in the Frobenius norm.

    Args:
        radius: the norm $r$, greater than zero.

    Raises:
        ValueError: if the radius is not positive and finite.

    Example:
        >>> import torch
        >>> FrobeniusNorm(radius=10.0)(torch.tensor([[3.0], [4.0]]))
        tensor([[6.],
                [8.]])
    """

    examples = (({}, (1, 1)), ({}, (3, 2)), ({"radius": 2.5}, (2, 4)))

    def __init__(self, radius: PositiveNumber = 1.0) -> None:
        super().__init__()
        self.radius = checked_positive("frobenius_norm", radius, "radius")

    def vectors(self, value: Tensor) -> Tensor:
        """The matrix as one vector."""
        return value.flatten(-2)

    def element(self, vectors: Tensor, like: Tensor) -> Tensor:
        """The vector as a matrix."""
        return vectors.reshape(like.shape)

    def dimension(self, shape: Sequence[int]) -> int:
        """``m n - 1``."""
        return shape[-2] * shape[-1] - 1
