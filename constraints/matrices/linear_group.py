"""Groups of matrices: invertible ones, and those with determinant one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from constrained import register
from constrained.constraint.sampling import RandomNumbers
from constrained.torch_internals import linalg
from constraints.bases.expected_failures import no_derivative
from constraints.bases.retraction import Retraction
from constraints.bases.shapes import SquareMatrices
from constraints.math.determinant import distance_from_unimodular, unimodular
from constraints.math.nearest_regular import nearest_regular, orientation, regular
from constraints.math.svd import svd, svdvals


@register("invertible", aliases=("general_linear", "gl"))
class Invertible(SquareMatrices, Retraction):
    r"""Invertible matrices, with a determinant of either sign or of a given one.

    **Use**: layers of normalizing flows, with the sign of the determinant fixed if its logarithm is
    needed; changes of coordinates that must have an inverse.

    **Set**: $\mathrm{GL}(n) = \{W \in \mathbb{R}^{n \times n} : \det W \ne 0\}$, open, of dimension
    $n^2$, and dense: its closure is the set of all matrices. For ``sign=1`` it is the group
    $\mathrm{GL}^+(n)$ of the matrices with a positive determinant, for ``sign=-1`` its other half.

    **Map**: the matrix itself. Singular values below $4 \varepsilon \lVert W \rVert_F$ are raised
    to that, so that each value has an inverse in floating-point arithmetic, and a condition number
    of at most $1 / (2 \varepsilon)$. Where the determinant has the wrong sign, the least singular
    value is negated. This is continuous, and smooth except where the two least singular values are
    equal. Onto the set, except for matrices that are singular up to rounding.

    **Right inverse**: the matrix itself.

    **Reference**: Golub and Van Loan, Matrix Computations (2013), section 2.4, for the distance
    from the singular matrices, which is the least singular value.

    `violation` measures the distance from the closure: the least singular value if the determinant
    has the wrong sign, else zero. To bound the condition number by less, take `SingularValues`.

    Args:
        sign: 1 for positive determinants, -1 for negative ones, None for both.

    Shape:
        ``(*batch, n, n)``.

    Raises:
        ValueError: if the sign is none of these.

    Example:
        >>> W = torch.tensor([[0.0, 2.0], [3.0, 0.0]])
        >>> torch.equal(Invertible()(W), W)
        True
        >>> torch.linalg.det(Invertible(sign=1)(W)) > 0
        tensor(True)
    """

    closed = False
    examples = (
        ({}, (1, 1)),
        ({}, (3, 3)),
        ({"sign": 1}, (1, 1)),
        ({"sign": 1}, (5, 5)),
        ({"sign": -1}, (3, 3)),
    )

    def __init__(self, sign: Literal[1, -1] | None = None) -> None:
        super().__init__()
        if isinstance(sign, bool) or sign not in (None, 1, -1):  # pyright: ignore[reportUnnecessaryIsInstance] - callers may be untyped
            raise ValueError(f"invertible: sign must be 1, -1 or None, got {sign!r}.")
        self.sign = sign
        if sign:
            points = ("zero_params",) if sign > 0 else ("zero_params", "eye", "repeated")
            reason = (
                "a singular matrix, or one singular up to rounding, as is the nearest one to a "
                "positive matrix with a negative determinant: the least singular value is reflected"
            )
            self.expected_failures = {
                **no_derivative(reason, *points),
                "admissible_gradients_vanish": "the set is not convex: at a boundary point, a step "
                "of a tenth of the size may lead to another part of the boundary",
            }

    def forward(self, X: Tensor) -> Tensor:
        """The matrix itself where it is regular and the sign of its determinant is right."""
        return regular(X, self.sign or 0)

    def violation(self, value: Tensor) -> Tensor:
        """The distance from the closure in the spectral norm."""
        if self.sign is None:
            return value.new_zeros(value.shape[:-2])
        wrong = linalg.slogdet(value.detach()).sign * self.sign < 0
        return torch.where(wrong, svdvals(value)[..., -1], 0)

    def slack(self, value: Tensor) -> Tensor:
        """The least singular value, the distance from a singular matrix in the spectral norm."""
        return svdvals(value)[..., -1]

    def project(self, value: Tensor) -> Tensor:
        """The nearest point of the closure in the Frobenius norm, moved inside by rounding."""
        return nearest_regular(value, self.sign or 0)

    def admit(self, value: Tensor, share: float) -> Tensor:
        """Where the determinant has the wrong sign, the least singular value is negated.

        Small singular values are raised to ``share`` of their mean, or of 1 if all are zero.
        """
        U, s, Vh = svd(value)
        mean = s.mean(-1, keepdim=True)
        s = torch.maximum(s, share * torch.where(mean > 0, mean, 1))
        if self.sign:
            wrong = orientation(U, Vh) * self.sign < 0
            s = torch.cat([s[..., :-1], torch.where(wrong.unsqueeze(-1), -1, 1) * s[..., -1:]], -1)
        return (U * s.unsqueeze(-2)) @ Vh

    def draw(self, shape: tuple[int, ...], random: RandomNumbers) -> Tensor:
        """Entries normal with mean 0 and variance 1 / n, given the sign of the determinant."""
        X = _oriented(random.normal(shape), self.sign or 0) / shape[-1] ** 0.5
        return nearest_regular(X, self.sign or 0)


@register("special_linear", aliases=("sl", "sln", "unit_determinant"))
class SpecialLinear(SquareMatrices, Retraction):
    r"""Matrices with determinant one.

    **Use**: linear maps that keep volumes: flow layers whose log-determinant is zero,
    incompressible linear dynamics.

    **Set**: $\mathrm{SL}(n) = \{W \in \mathbb{R}^{n \times n} : \det W = 1\}$, closed, of dimension
    $n^2 - 1$.

    **Map**: the nearest point if the determinant is between 0 and 1.2. With
    $X = U \operatorname{diag}(s) V^\top$, where $\det(U V^\top) = 1$ and so the last singular value
    may be negative, it is $U \operatorname{diag}(a) V^\top$ with
    $a_i = (s_i + \sqrt{s_i^2 + 4 \lambda}) / 2$, and $\lambda$ such that the product is 1. Onto the
    set. A matrix with a determinant of larger absolute value is scaled down first, to one of less
    than 1.9, because the nearest point jumps there and may have a singular value that no dtype can
    hold. The map is smooth where singular values are equal. It is not smooth at a matrix whose last
    singular value is minus the one before it, or whose rank is $n - 2$ or less.

    At a member the derivative is the orthogonal projection onto the tangent space. The usual map,
    $X \mapsto X / (\det X)^{1/n}$, is not a projection, and loses as many digits as the condition
    number has. This map loses none, whatever the condition number.

    **Right inverse**: the matrix itself. It is exact up to rounding while the condition number is
    below $1 / (4 \varepsilon)$, $2 \cdot 10^6$ in single precision. Above that, the least singular
    values are rounding errors.

    **Reference**: Helmke and Moore, Optimization and Dynamical Systems (1994), for the group as a
    manifold; Lewis, Derivatives of spectral functions (Mathematics of Operations Research 21,
    1996), for why equal singular values do no harm.

    `violation` is the Frobenius distance, also for a matrix with a larger determinant, whose
    nearest member is not the map's value. Unlike the error of the determinant, it is of the size of
    the rounding errors of the entries: in the determinant the condition number multiplies them.

    Shape:
        ``(*batch, n, n)``.

    Example:
        >>> W = SpecialLinear()(torch.tensor([[0.5, 0.0], [0.0, 0.5]]))
        >>> torch.allclose(W, torch.eye(2))
        True
    """

    preserves = ("positive_definite", "diagonal")
    recompute_in_backward = True
    examples = (({}, (1, 1)), ({}, (2, 2)), ({}, (3, 3)), ({}, (5, 5)))
    expected_failures = {  # noqa: RUF012
        "nearest": "the nearest point to a matrix with a larger determinant jumps, and may have a "
        "singular value that no dtype holds",
        "violation_grows": "a matrix that is scaled down may come along the set, from which its "
        "distance grows with the square at first",
        **no_derivative("the nearest points to the zero matrix are all of SO(n)", "zero_params"),
    }

    def forward(self, X: Tensor) -> Tensor:
        """The nearest member, or the one nearest to a multiple of X."""
        return unimodular(X)

    def canonical(self, X: Tensor) -> tuple[Tensor]:
        """The element itself."""
        with torch.no_grad():
            return (self.forward(X.detach()),)

    def tangent(self, value: Tensor, vector: Tensor) -> Tensor:
        """The vector without its part along the inverse transpose, the gradient of det."""
        normal = linalg.inv_ex(value)[0].mT
        normal = normal / normal.abs().amax((-2, -1), keepdim=True)
        normal = normal / linalg.matrix_norm(normal, keepdim=True)
        return vector - normal * (normal * vector).sum((-2, -1), keepdim=True)

    def violation(self, value: Tensor) -> Tensor:
        """The distance in the Frobenius norm."""
        return distance_from_unimodular(value)

    def project(self, value: Tensor) -> Tensor:
        """The value of the map: the nearest member if the determinant is between 0 and 1.2."""
        return unimodular(value.detach())

    def draw(self, shape: tuple[int, ...], random: RandomNumbers) -> Tensor:
        """A normal matrix with a positive determinant, divided by its n-th root.

        The direction is uniformly distributed. The map is applied last, to correct rounding.
        """
        X = _oriented(random.normal(shape), 1)
        logarithm = linalg.slogdet(X).logabsdet[..., None, None]
        return unimodular(X * torch.exp(-logarithm / shape[-1]))

    def dimension(self, shape: Sequence[int]) -> int:
        """``n^2 - 1``."""
        return shape[-1] ** 2 - 1


def _oriented(X: Tensor, sign: int) -> Tensor:
    """The matrices, with the first row negated where the determinant has the other sign."""
    if sign:
        wrong = linalg.slogdet(X).sign * sign < 0
        X[..., 0, :] *= 1 - 2 * wrong.unsqueeze(-1).to(X.dtype)
    return X
