"""Matrices with orthonormal columns or rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from constrained import register
from constrained.constraint.optional_methods import recomputed
from constrained.constraint.sampling import RandomNumbers
from constraints.bases.expected_failures import NO_POLAR_FACTOR, no_derivative
from constraints.bases.shapes import Matrices
from constraints.math.moving_base import quadratic, rebased, rebased_gradient
from constraints.math.orthonormal import orthonormality_error
from constraints.math.polar import polar, polar_factor, polar_gradient, thin_polar_gradient
from constraints.math.polar_in_place import make_tangent_, orthogonalize_
from constraints.math.steepest_stiefel import steepest_tangent
from constraints.math.stiefel_curves import cayley, geodesic
from constraints.math.thin_landing import is_probably_orthogonal, thin_landing_
from constraints.math.transpose import minus_transpose
from constraints.math.uniform_orthogonal import uniform_orthogonal

_CURVES = {"cayley": cayley, "exp": geodesic}


#: For each map, the index of the canonical parameter that is the element itself.
_MAPS = {"polar": 0, "rebased": 1, "cayley": None, "exp": None}


@register("orthogonal", aliases=("stiefel", "semi_orthogonal"))
class Orthogonal(Matrices):
    r"""Orthogonal matrices; orthonormal columns if tall, orthonormal rows if wide.

    **Use**: weights that keep lengths: recurrent networks over long sequences, orthogonal
    initialization that lasts, orthogonal fine-tuning (OFT), 1-Lipschitz networks without vanishing
    gradients, decorrelated features.

    **Set**: $\{W \in \mathbb{R}^{n \times p} : W^\top W = I\}$ for $n \ge p$, and $W W^\top = I$
    for $n < p$: the Stiefel manifold, closed, of dimension $n p - p (p + 1) / 2$ ($p$ the smaller
    side). It is $\mathrm{O}(n)$ for square matrices, with both its components: $\det W = 1$ and
    $\det W = -1$.

    **Map**: ``"polar"``: $X \mapsto \operatorname{polar}(X) = X (X^\top X)^{-1/2}$, the nearest
    member. Onto. The free parameter is the near-orthogonal matrix itself. Since it is made
    orthogonal after each optimizer step, the map costs one matrix product forward and two backward,
    for the projection of the gradient onto the tangent space. It does not depend on a positive
    factor of $X$, so weight decay is harmless. It is not differentiable at a matrix without full
    rank, where the gradient is cut off. It is onto both components, but training keeps the sign of
    the determinant of a square matrix: a gradient step gives $W + W A$ with a skew $A$, whose
    determinant has the sign of that of $W$, and the steps of other optimizers change it only if
    they are about as long as $W$.

    ``"cayley"`` and ``"exp"``: $X \mapsto f(X B^\top - B X^\top) B$, where $f$ is the Cayley
    transform or the exponential, $B$ is a constant member, and $X$ is free: a curve through $B$ for
    each direction $X$. Square matrices keep the sign of their determinant. The Cayley transform
    misses the members for which $B^\top W$ has an eigenvalue $-1$. Weight decay pulls towards $B$.

    ``"rebased"``, for square matrices: $X \mapsto \operatorname{polar}(B (I + S + S^2 / 2))$ with
    the skew part $S$ of $X$. After each optimizer step $B$ becomes the value, and $X$ becomes zero.
    A step costs at most three matrix products, one less than for ``"polar"``, and momentum needs no
    transport, since the coordinates move with $B$. But two matrices are stored, averages or shards
    of them have no meaning, and training keeps the sign of the determinant.

    **Right inverse**: ``"polar"``: the matrix itself. Otherwise $X = 0$, and $B$ is the matrix.

    **Reference**: Edelman, Arias and Smith, The geometry of algorithms with orthogonality
    constraints (1998); Higham, Functions of Matrices (2008), chapter 8, for the polar factor; Wen
    and Yin, A feasible method for optimization with orthogonality constraints (2013), for the
    Cayley transform.

    Args:
        map: ``"polar"``, ``"rebased"``, ``"cayley"`` or ``"exp"``.

    Shape:
        ``(*batch, n, p)``.

    Raises:
        ValueError: if there is no such map.

    Example:
        >>> Orthogonal().forward(torch.tensor([[0.0, -2.0], [2.0, 0.0]]))
        tensor([[ 0., -1.],
                [ 1.,  0.]])
    """

    examples = tuple(
        (arguments, shape)
        for arguments in ({}, {"map": "rebased"}, {"map": "cayley"}, {"map": "exp"})
        for shape in ((1, 1), (3, 3), (5, 2), (2, 5), (3, 2), (4, 1), (1, 4))
        if arguments != {"map": "rebased"} or shape[0] == shape[1]
    )
    expected_failures = no_derivative(NO_POLAR_FACTOR, "zero_params")

    def __init__(self, map: Literal["polar", "rebased", "cayley", "exp"] = "polar") -> None:
        super().__init__()
        if map not in _MAPS:
            known = ", ".join(repr(name) for name in _MAPS)
            raise ValueError(f"orthogonal: map must be one of {known}, not {map!r}.")
        self.map = map
        self.value_index = _MAPS[map]
        if map != "polar":
            self.frozen = (1,)
            self.expected_failures = {}

    def forward(self, X: Tensor, *base: Tensor) -> Tensor:
        """The member with the parameter X and, unless the map is ``"polar"``, the base point B."""
        if self.map == "polar":
            return polar(X)
        (B,) = base
        if self.map == "rebased":
            return polar(quadratic(B, X))
        curve = _CURVES[self.map]
        wide = X.shape[-2] < X.shape[-1]
        # The rounding errors of the curves grow with X, to 1e-3 in single precision at |X| = 1000.
        return polar(curve(B.mT, X.mT).mT if wide else curve(B, X))

    def right_inverse(self, value: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """The matrix itself for ``"polar"``; else zeros, and the matrix as the base point."""
        return value if self.map == "polar" else (torch.zeros_like(value), value)

    def canonical(self, *params: Tensor) -> tuple[Tensor, ...]:
        """X orthogonal for ``"polar"``; X = 0 for ``"rebased"``; else unchanged parameters."""
        if self.map == "polar":
            return (polar_factor(params[0]),)
        if self.map == "rebased":
            return rebased(*params)
        return params

    def pullback(
        self, value: Tensor, gradient: Tensor, *params: Tensor
    ) -> tuple[Tensor | None, ...]:
        """The projection onto the tangent space, where the parameters are canonical.

        The curves are evaluated again in the backward pass: their graph would hold six matrices.
        """
        if self.map == "polar":
            return (polar_gradient(params[0], value, gradient),)
        if self.map == "rebased":
            return rebased_gradient(value, gradient, params[0], params[1]), None
        return recomputed(self, gradient, params)

    def tangent(self, value: Tensor, vector: Tensor) -> Tensor:
        """The orthogonal projection onto the tangent space."""
        return polar_gradient(value, value, vector)

    def tangent_(self, value: Tensor, gradient: Tensor) -> bool:
        """`tangent` in place: two matrix products."""
        return make_tangent_(value, gradient)

    def retract_(self, value: Tensor) -> None:
        """The polar factor in place: for a short step, two matrix products."""
        orthogonalize_(value)

    def landing_(self, value: Tensor, gradient: Tensor, rate: float, notes: dict[str, Any]) -> bool:
        """The Cayley curve, if the matrix is square and large, and the gradient of low rank."""
        return thin_landing_(value, gradient, rate, notes)

    def has_landed(self, value: Tensor, notes: dict[str, Any]) -> bool:
        """Whether ``W' W z = z`` for a random vector z, up to rounding."""
        return is_probably_orthogonal(value, notes)

    def thin_pullback(
        self, value: Tensor, left: Tensor, right: Tensor, *params: Tensor
    ) -> tuple[Tensor | None, ...] | None:
        """The gradient of `pullback` in some products of ``(b, n)`` and ``(b, p)`` matrices."""
        if self.map == "polar" and params[0] is value:
            gradient = thin_polar_gradient(value, left, right)
            return None if gradient is None else (gradient,)
        if self.map == "rebased" and not torch.any(params[0]):
            product = (left @ value).mT @ right
            return minus_transpose(product).mul_(0.5), None
        return None

    def steepest(self, value: Tensor, gradient: Tensor) -> Tensor:
        """The steepest tangent direction of spectral norm 1: the step of manifold Muon."""
        return steepest_tangent(value, gradient).direction

    def violation(self, value: Tensor) -> Tensor:
        """The largest entry of ``|W' W - I|``, or of ``|W W' - I|`` if W is wide."""
        return orthonormality_error(value)

    def project(self, value: Tensor) -> Tensor:
        """The nearest member in the Frobenius norm, the polar factor."""
        return polar(value)

    def draw(self, shape: tuple[int, ...], random: RandomNumbers) -> Tensor:
        """Uniformly distributed (Haar measure)."""
        *batch, n, p = shape
        if n < p:
            return self.draw((*batch, p, n), random).mT.contiguous()
        return polar(uniform_orthogonal(random.normal(shape)))

    def shape_problem(self, event: tuple[int, ...]) -> str | None:
        """An element is a matrix that is not empty, and square for ``"rebased"``."""
        if self.map == "rebased" and event[0] != event[1]:
            return "must be a square matrix for map='rebased'"
        return super().shape_problem(event)

    def dimension(self, shape: Sequence[int]) -> int:
        """``n p - p (p + 1) / 2``, where p is the smaller side."""
        n, p = max(shape[-2:]), min(shape[-2:])
        return n * p - p * (p + 1) // 2
