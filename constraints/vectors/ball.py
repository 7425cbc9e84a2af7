"""Balls: vectors whose norm is bounded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from constrained import register
from constrained.constraint.linear_form import Image, LinearForm
from constraints.bases.argument_checks import PositiveNumber, checked_bound, checked_positive
from constraints.bases.expected_failures import no_derivative
from constraints.bases.length_bound import KINK, LengthBound, kinks_and_outside


@register("ball", aliases=("l2_ball", "norm_ball"))
class Ball(LengthBound):
    r"""Vectors whose p-norm is at most a radius.

    **Use**: vectors of bounded length: embeddings, prompts and adversarial perturbations; with
    $p = 1$ sparse vectors.

    **Set**: $\{x \in \mathbb{R}^n : \lVert x \rVert_p \le r\}$. Dimension $n$, closed, convex.

    **Map**: the identity inside; outside $y \mapsto r y / \lVert y \rVert_p$, or for $p = 1$ the
    nearest point, as for `L1Ball`. Onto the set.

    **Right inverse**: the identity, up to rounding on the boundary.

    **Reference**: Bertsekas, On the Goldstein-Levitin-Polyak gradient projection method (1976).

    `project` is the nearest point in the Euclidean norm, found by iteration for $p$ other than 1
    and 2.

    For $p = 1$ gradients are those of `L1Ball`. Outside of the ball ``grad`` is not the derivative
    of the map, and a step rewrites it. ``create_graph=True`` gives the derivative.

    Args:
        radius: the largest norm $r$, greater than zero.
        p: the order $p$ of the norm, 1 or more, finite; ``box`` is the ball of the maximum norm.

    Raises:
        ValueError: if the radius is not positive, or p is less than 1 or not finite.

    Example:
        >>> import torch
        >>> Ball(radius=5.0)(torch.tensor([[3.0, 3.0], [3.0, 4.0]]))
        tensor([[3., 3.],
                [3., 4.]])
    """

    preserves = ("sum_to_zero", "nonnegative", "nonpositive", "positive", "negative")
    examples = (
        ({}, (1,)),
        ({}, (4,)),
        ({"radius": 2.5}, (3,)),
        ({"radius": 2.0, "p": 3.0}, (3,)),
        ({"radius": 2.0, "p": 1.0}, (3,)),
    )
    expected_failures = no_derivative(KINK, "ones", "boundary")

    def __init__(self, radius: PositiveNumber = 1.0, p: Annotated[float, Ge(1)] = 2.0) -> None:
        super().__init__()
        self.radius = checked_positive("ball", radius, "radius")
        self.p = checked_bound("ball", p, "p")
        if self.p == 1:
            self.preserves = ("nonnegative", "nonpositive")
            self.expected_failures = kinks_and_outside()
        if self.p < 1:
            raise ValueError(f"ball: p must be 1 or more, got {p!r}.")

    @property
    def greatest(self) -> float:
        """The radius."""
        return self.radius

    @property
    def order(self) -> float:  # type: ignore[override]
        """The order of the norm."""
        return self.p


@register("l1_ball", aliases=("cross_polytope",))
class L1Ball(LengthBound):
    r"""Vectors whose absolute values add up to at most a radius.

    **Use**: sparse weights with a budget: the lasso as a constraint, feature selection, sparse
    attention over few entries.

    **Set**: $\{x \in \mathbb{R}^n : \lvert x_1 \rvert + \dots + \lvert x_n \rvert \le r\}$.
    Dimension $n$, closed, convex.

    **Map**: the identity inside; outside the nearest point,
    $x_i = \operatorname{sign}(y_i) \max(\lvert y_i \rvert - t, 0)$ with the $t$ for which the sum
    is $r$. Onto the set. Small entries become zero, as in most optima on the boundary. If the whole
    vector were scaled back instead, entries that should be zero would change their sign at each
    step. `canonical` moves a parameter that a step has led outside back to the boundary.

    **Right inverse**: the identity, up to rounding on the boundary.

    **Reference**: Duchi et al., Efficient projections onto the l1-ball for learning in high
    dimensions (ICML 2008), section 4; Bertsekas, On the Goldstein-Levitin-Polyak gradient
    projection method (1976).

    `project` is the nearest point in the Euclidean norm.

    Outside of the ball the derivative of the map with respect to an entry that it sends to 0 is
    zero, so that the entry would stay 0. Therefore `backward` gives the gradient with respect to
    the element there, as a straight-through estimator does. With ``create_graph=True``, and under
    `torch.func`, it gives the derivative of the map. On the boundary, steps use the gradient
    mapping of `constraints.math.l1_projection`: the parameter's ``grad`` is rewritten when the step
    begins. Read gradients before the step, and call ``zero_grad`` after it.

    Args:
        radius: the largest sum $r$, greater than zero.

    Raises:
        ValueError: if the radius is not positive and finite.

    Example:
        >>> import torch
        >>> y = torch.tensor([[0.5, -1.0, 0.0], [0.5, -3.0, 2.0]])
        >>> L1Ball(radius=2.0).project(y)
        tensor([[ 0.5000, -1.0000,  0.0000],
                [ 0.0000, -1.5000,  0.5000]])
        >>> L1Ball(radius=2.0)(y).sum(-1)
        tensor([-0.5000, -1.0000])
    """

    order = 1.0
    preserves = ("nonnegative", "nonpositive")
    examples = (({}, (1,)), ({}, (4,)), ({"radius": 2.5}, (3,)), ({"radius": 1.0}, (50,)))
    expected_failures = kinks_and_outside()

    def __init__(self, radius: PositiveNumber = 1.0) -> None:
        super().__init__()
        self.radius = checked_positive("l1_ball", radius, "radius")

    def linear_form(self, shape: Sequence[int]) -> LinearForm:
        """Differences of non-negative numbers whose sum is bounded."""
        n = shape[-1]
        identity = torch.eye(n, dtype=torch.float64)
        image = Image(torch.cat([identity, -identity], 1), identity.new_zeros(n), _parts)
        sums, most = identity.new_ones(1, 2 * n), identity.new_full((1,), self.radius)
        return LinearForm(0.0, torch.inf, sums, torch.full_like(most, -torch.inf), most, image)

    @property
    def greatest(self) -> float:
        """The radius."""
        return self.radius


@register("max_norm")
class MaxNorm(LengthBound):
    r"""Vectors whose Euclidean length is at most a bound, such as the weights into each unit.

    **Use**: regularization of the weights into each unit, as with dropout
    (``keras.constraints.MaxNorm``); embeddings of bounded length.

    **Set**: $\{x \in \mathbb{R}^n : \lVert x \rVert \le b\}$. Dimension $n$, closed, convex.

    **Map**: the identity inside; outside the vector is scaled back, as for `Ball`.

    **Right inverse**: the identity, up to rounding on the boundary.

    **Reference**: Srivastava et al., Dropout: a simple way to prevent neural networks from
    overfitting (JMLR 15, 2014), section 5.1.

    The vectors are the last dimension of the tensor: the rows of the weight of ``nn.Linear``.

    Args:
        bound: the greatest length $b$, greater than zero.

    Raises:
        ValueError: if the bound is not positive and finite.

    Example:
        >>> import torch
        >>> W = MaxNorm(bound=5.0).project(torch.tensor([[6.0, 8.0], [1.0, 2.0]]))
        >>> torch.allclose(W, torch.tensor([[3.0, 4.0], [1.0, 2.0]]))
        True
    """

    preserves = ("sum_to_zero", "nonnegative", "nonpositive", "positive", "negative")
    examples = (({"bound": 1.0}, (1,)), ({"bound": 1.0}, (4,)), ({"bound": 2.5}, (3,)))
    expected_failures = no_derivative(KINK, "ones", "boundary")

    def __init__(self, bound: PositiveNumber) -> None:
        super().__init__()
        self.bound = checked_positive("max_norm", bound, "bound")

    @property
    def greatest(self) -> float:
        """The bound."""
        return self.bound


def _parts(value: Tensor) -> Tensor:
    """The positive and the negative parts of vectors."""
    return torch.cat([value.clamp(min=0), (-value).clamp(min=0)], -1)
