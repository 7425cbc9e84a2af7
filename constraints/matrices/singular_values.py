"""Matrices whose singular values lie between two bounds."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from constrained import register
from constrained.constraint.sampling import RandomNumbers
from constraints.bases.argument_checks import PositiveNumber, checked_bound, checked_positive
from constraints.bases.boundary import relax_to_boundary
from constraints.bases.expected_failures import no_derivative
from constraints.bases.retraction import Retraction
from constraints.bases.shapes import Matrices
from constraints.math.clip_singular_values import clamp_singular_values
from constraints.math.svd import svdvals
from constraints.matrices.orthogonal import Orthogonal

_KINK = (
    "the map has a kink on the boundary, the identity inside and a projection outside, and no "
    "limit at a matrix that has not full rank"
)


class SpectrumBound(Matrices, Retraction):
    """Base of sets of matrices whose singular values lie between two bounds.

    The map is the projection, and the parameter is the matrix itself. `canonical` moves a parameter
    that a step has led outside a tenth of the way back to the boundary:
    `constraints.bases.boundary.relax_to_boundary` says why not all the way.
    """

    @abstractmethod
    def bounds(self) -> tuple[float, float]:
        """The least and the largest singular value."""

    def forward(self, X: Tensor) -> Tensor:
        """The nearest member."""
        return clamp_singular_values(X, *self.bounds())

    def right_inverse(self, value: Tensor) -> Tensor:
        """The matrix itself, up to rounding."""
        return clamp_singular_values(value, *self.bounds())

    def canonical(self, X: Tensor) -> tuple[Tensor]:
        """A parameter of the same element that is nearer to it."""
        with torch.no_grad():
            return (relax_to_boundary(X, self.forward(X), 2),)

    def violation(self, value: Tensor) -> Tensor:
        """The largest distance of a singular value from the interval: that in the spectral norm."""
        low, high = self.bounds()
        # LAPACK errs up to ten times as much on a wide matrix as on its transpose.
        s = svdvals(value if value.shape[-2] >= value.shape[-1] else value.mT)
        return F.relu(torch.maximum(low - s[..., -1], s[..., 0] - high))

    def slack(self, value: Tensor) -> Tensor:
        """How far the singular values are from the nearer bound; 0 is none for them."""
        low, high = self.bounds()
        s = svdvals(value)
        above = high - s[..., 0]
        return torch.minimum(above, s[..., -1] - low) if low > 0 else above

    def draw(self, shape: tuple[int, ...], random: RandomNumbers) -> Tensor:
        """``U S V'`` with U and V uniform (Haar measure) and S uniform between the bounds."""
        *batch, n, p = shape
        low, high = self.bounds()
        rank = min(n, p)
        U, V = (Orthogonal().draw((*batch, side, rank), random) for side in (n, p))
        S = low + (high - low) * random.uniform((*batch, 1, rank))
        return clamp_singular_values((U * S) @ V.mT, low, high)


@register("singular_values", aliases=("singular_value_range", "bounded_condition"))
class SingularValues(SpectrumBound):
    r"""Matrices whose singular values lie between two bounds.

    **Use**: layers with a certificate in both directions, bi-Lipschitz or well-conditioned: flows,
    inverse problems, critics that must not collapse.

    **Set**: $\{W \in \mathbb{R}^{n \times p} : l \le \sigma_i(W) \le h, i \le \min(n, p)\}$:
    closed, of dimension $n p$. If $l > 0$, the square matrices are in two pieces, one for each sign
    of the determinant. The condition number is at most $h / l$.

    **Map**: the nearest member, $X = U \Sigma V^\top \mapsto U \min(\max(\Sigma, l), h) V^\top$.
    Onto the set. A member is returned bit for bit. There the derivative is the identity, even on
    the boundary. Outside, the derivative divides by no difference of singular values that can
    vanish.

    **Right inverse**: the matrix itself, with singular values outside by rounding clamped.

    **Reference**: Higham, Functions of Matrices (2008), chapter 8, for the nearest matrix; Sedghi,
    Gupta and Long, The singular values of convolutional layers (2019), for the projection as a
    constraint in training.

    If a singular value is 0 and $l > 0$, the nearest member is not unique. One of them is taken,
    and the gradient is cut off there.

    Args:
        low: the least singular value $l$, 0 or more.
        high: the largest one $h$, greater than ``low``.

    Shape:
        ``(*batch, n, p)``.

    Raises:
        TypeError: if a bound is not a number.
        ValueError: if the bounds are not finite, in the wrong order, or the lower one negative.

    Example:
        >>> SingularValues(low=0.5, high=2.0)(torch.tensor([[8.0, 0.0], [0.0, 0.25]]))
        tensor([[2.0000, 0.0000],
                [0.0000, 0.5000]])
    """

    examples = (
        ({"low": 1.0, "high": 2.0}, (1, 1)),
        ({"low": 1.0, "high": 2.0}, (3, 3)),
        ({"low": 0.01, "high": 1.0}, (4, 2)),
        ({"low": 0.5, "high": 0.75}, (2, 5)),
        ({"low": 0.0, "high": 1.0}, (1, 4)),
    )
    expected_failures = no_derivative(
        _KINK, "zero_params", "zeros", "ones", "eye", "repeated", "boundary"
    )

    def __init__(self, low: Annotated[float, Ge(0)], high: PositiveNumber) -> None:
        super().__init__()
        self.low = checked_bound("singular_values", low, "low")
        self.high = checked_bound("singular_values", high, "high")
        if not 0 <= self.low < self.high:
            raise ValueError(
                "singular_values: low must be 0 or more and less than high, "
                f"got low={low!r} and high={high!r}."
            )

    def bounds(self) -> tuple[float, float]:
        """The least and the largest singular value."""
        return self.low, self.high


@register("almost_orthogonal", aliases=("near_orthogonal",))
class AlmostOrthogonal(SpectrumBound):
    r"""Matrices that change the length of no vector by more than a given share.

    **Use**: layers that are close to isometries without the price of exact orthogonality: deep
    networks without normalization, RNNs with some room, invertible layers of bounded condition.

    **Set**: $\{W \in \mathbb{R}^{n \times p} : \lvert \sigma_i(W) - 1 \rvert \le r, i \le \min(n,
    p)\}$, the matrices within the spectral distance $r$ of a matrix with orthonormal columns (if
    tall) or rows (if wide). Closed, of dimension $n p$. The square matrices are in two pieces, one
    for each sign of the determinant.

    **Map**: the nearest member, as for `SingularValues`: onto the set, boundary included.

    **Right inverse**: the matrix itself, with singular values outside by rounding clamped.

    **Reference**: as for `SingularValues`. For $r = 0$ it would be the set of `Orthogonal`.

    Args:
        radius: the largest distance $r$ of a singular value from 1, between 0 and 1, both excluded.

    Shape:
        ``(*batch, n, p)``.

    Raises:
        TypeError: if the radius is not a number.
        ValueError: if it is not between 0 and 1.

    Example:
        >>> AlmostOrthogonal(radius=0.25)(torch.tensor([[8.0, 0.0], [0.0, 0.25]]))
        tensor([[1.2500, 0.0000],
                [0.0000, 0.7500]])
    """

    examples = (
        ({"radius": 0.5}, (1, 1)),
        ({"radius": 0.1}, (3, 3)),
        ({"radius": 0.25}, (4, 2)),
        ({"radius": 0.75}, (2, 5)),
        ({"radius": 0.5}, (1, 4)),
    )
    expected_failures = no_derivative(_KINK, "zero_params", "zeros", "ones", "repeated", "boundary")

    def __init__(self, radius: Annotated[float, Gt(0), Lt(1)]) -> None:
        super().__init__()
        self.radius = checked_positive("almost_orthogonal", radius, "radius")
        if self.radius >= 1:
            raise ValueError(f"almost_orthogonal: radius must be less than 1, got {radius!r}.")

    def bounds(self) -> tuple[float, float]:
        """The least and the largest singular value."""
        return 1 - self.radius, 1 + self.radius
