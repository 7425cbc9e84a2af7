"""Hyperbolic space: the Poincare ball and the hyperboloid."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from constrained import Constraint, register
from constrained.constraint.sampling import RandomNumbers
from constrained.torch_internals import linalg
from constraints.bases.argument_checks import PositiveNumber, checked_positive
from constraints.bases.shapes import Vectors
from constraints.math.scaled_ball import onto_scaled_ball
from constraints.math.unit_vectors import scaled

#: The least distance of a point from the boundary, in units of the machine epsilon times the
#: radius. It is such that the norm is less than the radius for every order of summation.
MARGIN = 16.0


#: The distance from the boundary to which `PoincareBall.project` moves a point, in the same units.
#: There, 1 - ||x||, on which every hyperbolic distance depends, is known to three digits.
PROJECTED = 1024.0


#: The argument below which tanh is computed from its series, and its coefficients.
SMALL = 0.1

SERIES = (1.0, -1 / 3, 2 / 15, -17 / 315, 62 / 2835, -1382 / 155925, 21844 / 6081075)


@register("poincare_ball", aliases=("poincare",))
class PoincareBall(Vectors):
    r"""Points of hyperbolic space in the Poincare ball model.

    **Use**: embeddings of trees and hierarchies, hyperbolic neural networks and attention, in the
    model that is drawn most easily.

    **Set**: $\{x \in \mathbb{R}^n : c \lVert x \rVert^2 < 1\}$, the open ball of the radius
    $1 / \sqrt{c}$; as hyperbolic space it has the sectional curvature $-c$. Dimension $n$, open.

    **Map**: the exponential map at the origin,
    $y \mapsto \tanh(k \lVert y \rVert) \, y / (k \lVert y \rVert)$ with $k = \sqrt{c}$, onto the
    set: straight lines from zero become geodesics, and the distance from the origin is
    $2 \lVert y \rVert$. Where $\tanh$ is 1 up to $16 \varepsilon$, the point stays at that distance
    from the boundary, with the same gradient.

    **Right inverse**: the logarithmic map, $x \mapsto \operatorname{artanh}(k \lVert x \rVert) \, x
    / (k \lVert x \rVert)$. A point that is nearer to the boundary than $16 \varepsilon$ of the
    radius is moved to that distance.

    **Reference**: Ganea, Becigneul and Hofmann, Hyperbolic neural networks (NeurIPS 2018),
    section 2.4.

    In single precision points come no nearer to the boundary than $2 \cdot 10^{-6}$ of the radius,
    a hyperbolic distance of $14 / \sqrt{c}$ from the origin; in double precision it is
    $34 / \sqrt{c}$. At $d$ radii from the boundary, the radial component of the gradient in $y$ is
    about $2 d$ times that in $x$. So a hyperbolic loss, whose gradient in $x$ grows like $1 / d$,
    has a gradient of moderate size in $y$ everywhere, while a Euclidean loss moves a point away
    from the boundary slowly.

    Args:
        curvature: minus the sectional curvature, $c$, greater than zero.

    Raises:
        ValueError: if the curvature is not positive and finite.

    Example:
        >>> ball = PoincareBall(curvature=4.0)
        >>> ball(torch.tensor([[0.0, 0.25], [3e10, 4e10]]))
        tensor([[0.0000, 0.2311],
                [0.3000, 0.4000]])
        >>> ball.right_inverse(torch.tensor([0.0, 0.3]))
        tensor([0.0000, 0.3466])
    """

    recompute_in_backward = True
    closed = False
    examples = (({}, (1,)), ({}, (3,)), ({"curvature": 0.25}, (2,)), ({"curvature": 9.0}, (20,)))

    def __init__(self, curvature: PositiveNumber = 1.0) -> None:
        super().__init__()
        self.curvature = checked_positive("poincare_ball", curvature, "curvature")

    def forward(self, y: Tensor) -> Tensor:
        """``tanh(c ||y||) y / (c ||y||)``."""
        c = math.sqrt(self.curvature)
        direction, scale = scaled(y)
        length = c * scale * linalg.vector_norm(direction, dim=-1, keepdim=True)
        # tanh(t) / t is a smooth function of t^2. Its series is used near t = 0, where t has no
        # derivative. Infinity in the branch that is not selected would make the gradient NaN.
        small = length < SMALL
        square = torch.where(small, c * y, 0).square().sum(-1, keepdim=True)
        series = torch.zeros_like(square)
        for coefficient in reversed(SERIES):
            series = series * square + coefficient
        # Written with exp, the radial derivative keeps its digits where tanh is almost 1. The
        # radial derivative of the unit vector is zero, as a difference of large numbers. They must
        # cancel before anything is added to them, so the norm for the unit vector is computed
        # separately from the length in tanh.
        decay = torch.exp(-2 * torch.where(small, 1, length))
        tanh = (1 - decay) / (1 + decay)
        most = 1 - MARGIN * torch.finfo(y.dtype).eps
        tanh = tanh + (tanh.clamp(max=most) - tanh).detach()
        unit = direction / linalg.vector_norm(direction, dim=-1, keepdim=True)
        return torch.where(small, y * series, unit * (tanh / c))

    def right_inverse(self, value: Tensor) -> Tensor:
        """``artanh(c ||x||) x / (c ||x||)``."""
        value = self._inside(value)
        length = math.sqrt(self.curvature) * _norm(value)
        positive = length > torch.finfo(value.dtype).tiny
        safe = torch.where(positive, length, 0.5)
        return torch.where(positive, value * (torch.atanh(safe) / safe), value)

    def violation(self, value: Tensor) -> Tensor:
        """How much longer than the radius the vector is."""
        return (_norm(value).squeeze(-1) - self._radius()).clamp(min=0)

    def slack(self, value: Tensor) -> Tensor:
        """The radius of the ball less the norm."""
        return self._radius() - _norm(value).squeeze(-1)

    def project(self, value: Tensor) -> Tensor:
        """A point outside moves along its direction to 1024 eps (of the radius) inside."""
        inside = _norm(value) < self._radius()
        return torch.where(inside, value, self._inside(value, PROJECTED))

    def project_scaled(self, value: Tensor, scale: Tensor) -> Tensor:
        """``x s / (s + t)``, as for `Ball`, as far inside as for `project`."""
        inside = _norm(value) < self._radius()
        found = self._inside(onto_scaled_ball(value, scale, self._radius(), 2.0), PROJECTED)
        return torch.where(inside, value, found)

    def inwards(self, value: Tensor, share: float) -> Tensor:
        """A point nearer to the boundary moves to where the radial derivative is ``share``.

        The unit is the derivative at zero.
        """
        # 1 - tanh^2 = 1 - t^2 at the share t of the radius.
        longest = self._radius() * math.sqrt(1 - share)
        return _shortened(value, longest)

    def draw(self, shape: tuple[int, ...], random: RandomNumbers) -> Tensor:
        """The wrapped normal distribution: a normal y with E ||y||^2 = 1 / curvature."""
        return self.forward(random.normal(shape) * (self._radius() / math.sqrt(shape[-1])))

    def _radius(self) -> float:
        return 1 / math.sqrt(self.curvature)

    def _inside(self, value: Tensor, margin: float = MARGIN) -> Tensor:
        return _shortened(value, self._radius() * (1 - margin * torch.finfo(value.dtype).eps))


def _norm(value: Tensor) -> Tensor:
    direction, scale = scaled(value)
    return scale * linalg.vector_norm(direction, dim=-1, keepdim=True)


def _shortened(value: Tensor, longest: float) -> Tensor:
    """The vectors, with longer ones scaled down to the length ``longest``."""
    length = _norm(value)
    outside = length > longest
    return torch.where(outside, value * (longest / torch.where(outside, length, 1)), value)


@register("lorentz", aliases=("hyperboloid",))
class Lorentz(Constraint):
    r"""Points of hyperbolic space in the hyperboloid model.

    **Use**: embeddings of trees and hierarchies in hyperbolic space, where distances are computed
    without the cancellation at the boundary of the Poincaré ball.

    **Set**: $\{x \in \mathbb{R}^{n+1} : -x_0^2 + x_1^2 + \dots + x_n^2 = -1 / c, x_0 > 0\}$, the
    upper sheet of a hyperboloid, of sectional curvature $-c$. Dimension $n$, closed.

    **Map**: $y \in \mathbb{R}^n \mapsto (\sqrt{1 / c + \lVert y \rVert^2}, y)$, onto the set, which
    is the graph of this root. The exponential map contains a hyperbolic sine, which overflows in
    single precision from $\lVert y \rVert = 89$ on.

    **Right inverse**: all entries but the first one, $x \mapsto (x_1, \dots, x_n)$.

    **Reference**: Nickel and Kiela, Learning continuous hierarchies in the Lorentz model of
    hyperbolic geometry (ICML 2018), section 3.

    `project` is the nearest point in the Euclidean norm.

    Args:
        curvature: minus the sectional curvature, $c$, greater than zero.

    Shape:
        ``(*batch, n + 1)`` with n of 1 or more; the free parameter has the shape ``(*batch, n)``.

    Raises:
        ValueError: if the curvature is not positive and finite.

    Example:
        >>> Lorentz()(torch.tensor([0.75, 1.0]))
        tensor([1.6008, 0.7500, 1.0000])
        >>> Lorentz(curvature=0.25).project(torch.tensor([-1.0, 0.0, 0.0]))
        tensor([2., 0., 0.])
    """

    event_dim = 1
    examples = (({}, (2,)), ({}, (4,)), ({"curvature": 0.25}, (3,)), ({"curvature": 4.0}, (20,)))

    def __init__(self, curvature: PositiveNumber = 1.0) -> None:
        super().__init__()
        self.curvature = checked_positive("lorentz", curvature, "curvature")

    def forward(self, y: Tensor) -> Tensor:
        """``(sqrt(1 / curvature + ||y||^2), y)``."""
        return torch.cat([self._height(y), y], -1)

    def right_inverse(self, value: Tensor) -> Tensor:
        """All entries but the first one."""
        return value[..., 1:].contiguous()

    def tangent(self, value: Tensor, vector: Tensor) -> Tensor:
        """The vector without its part along the normal ``(-x_0, x_1, ..., x_n)``.

        It is the orthogonal projection in the Euclidean inner product, not in that of Minkowski.
        """
        normal = torch.cat([-value[..., :1], value[..., 1:]], -1)
        unit, _ = scaled(normal)
        unit = unit / linalg.vector_norm(unit, dim=-1, keepdim=True)
        return vector - unit * (unit * vector).sum(-1, keepdim=True)

    def violation(self, value: Tensor) -> Tensor:
        """The distance of the first entry from that of the member with the same other entries."""
        return (value[..., :1] - self._height(value[..., 1:])).abs().squeeze(-1)

    def project(self, value: Tensor) -> Tensor:
        """A nearest point in the Euclidean norm, which is unique except for points on the axis.

        It is (h(s), s x' / a) with x' = (x_1, ..., x_n), a = ||x'|| and h(s) = sqrt(R^2 + s^2),
        where s >= 0 minimizes (s - a)^2 + (h(s) - x_0)^2: a zero of f(s) = 2 s - a - x_0 s / h(s).
        For x_0 > 0, f is convex, and not negative at s = (a + x_0) / 2. For x_0 <= 0 it is concave,
        with f(0) = -a. From these points Newton's method approaches the zero from one side.
        """
        direction, scale = scaled(value[..., 1:])
        norm = linalg.vector_norm(direction, dim=-1, keepdim=True)
        a, x0, R = scale * norm, value[..., :1], 1 / math.sqrt(self.curvature)
        # In units of the largest of the three.
        unit = torch.maximum(torch.maximum(a, x0.abs()), torch.full_like(a, R))
        a, x0, R = a / unit, x0 / unit, R / unit
        s = torch.where(x0 > 0, (a + x0) / 2, 0)
        for _ in range(NEWTON_STEPS):
            h = torch.hypot(R, s)
            slope = 2 - x0 * (R / h).square() / h
            step = (2 * s - a - x0 * (s / h)) / slope.clamp(min=torch.finfo(s.dtype).eps)
            s = (s - step).clamp(min=0)
        return self.forward(direction * (s * unit / norm))

    def draw(self, shape: tuple[int, ...], random: RandomNumbers) -> Tensor:
        """All entries but the first one normal, with the standard deviation 1 / sqrt(curvature)."""
        y = random.normal((*shape[:-1], shape[-1] - 1))
        return self.forward(y / math.sqrt(self.curvature))

    def dimension(self, shape: Sequence[int]) -> int:
        """``n``, one less than there are entries."""
        return shape[-1] - 1

    def shape_problem(self, event: tuple[int, ...]) -> str | None:
        """An element has at least two entries."""
        return None if event[0] > 1 else "must have at least two entries"

    def _height(self, y: Tensor) -> Tensor:
        # In units of the largest entry, so that the squares neither overflow nor underflow.
        R = 1 / math.sqrt(self.curvature)
        unit = y.detach().abs().amax(-1, keepdim=True).clamp(min=R)
        return unit * torch.sqrt((R / unit).square() + (y / unit).square().sum(-1, keepdim=True))


#: Newton's method needs few steps, unless a, x_0 and R all differ by many orders of magnitude.
NEWTON_STEPS = 64
