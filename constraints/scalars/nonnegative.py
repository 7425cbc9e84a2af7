"""The closed half-lines: numbers of one sign or zero, and numbers up to or from a bound."""

from __future__ import annotations

from constrained import register
from constraints.bases.expected_failures import no_derivative
from constraints.bases.half_line import KINK, Bounded, ClosedHalfLine


@register("nonnegative", aliases=("non_negative", "non_neg"))
class Nonnegative(ClosedHalfLine):
    r"""Numbers that are zero or positive.

    **Use**: weights of which many should become zero: non-negative matrix factorization, sparse
    additive models, monotone networks. Training ends within a millionth of its last step from
    zero, on the inside; set such entries to zero where bits matter. Where zero is excluded take
    `positive`.

    **Set**: $\{x \in \mathbb{R} : x \ge 0\}$, elementwise. Dimension 1, closed.

    **Map**: $y \mapsto \max(y, -2^{-20} y)$, onto the set, with the derivative $+1$ at $y = 0$.

    **Right inverse**: the identity.

    **Reference**: Bertsekas, On the Goldstein-Levitin-Polyak gradient projection method (1976). The
    usual maps fail at the boundary: exp and softplus never reach zero, the square has the gradient
    zero there, ReLU has it everywhere below, and the absolute value reflects a parameter that
    overshoots zero to the same distance, so that with momentum it never comes to rest.

    `canonical` replaces a parameter by its value. An optimizer step thus ends like one of projected
    gradients, at zero up to a millionth of the overshoot. Without `canonical` the small slope below
    zero still leads back: Adam and similar optimizers do not depend on the scale of a gradient.

    Example:
        >>> import torch
        >>> nonnegative = Nonnegative()
        >>> y = torch.tensor([-2.0, 0.0, 3.0], requires_grad=True)
        >>> nonnegative(y).tolist()
        [1.9073486328125e-06, 0.0, 3.0]
        >>> torch.autograd.grad(nonnegative(y).sum(), y)[0].tolist()
        [-9.5367431640625e-07, 1.0, 1.0]
    """

    examples = (({}, ()),)
    expected_failures = no_derivative(KINK, "zero_params", "zeros")
    end, direction = 0.0, 1


@register("nonpositive", aliases=("non_positive", "non_pos"))
class Nonpositive(ClosedHalfLine):
    r"""Numbers that are zero or negative.

    **Use**: effects that may only lower the result, and may vanish: inhibitory connections,
    penalties, energies of attraction.

    **Set**: $\{x \in \mathbb{R} : x \le 0\}$, elementwise. Dimension 1, closed.

    **Map**: $y \mapsto \min(y, -2^{-20} y)$, onto the set, with the derivative $+1$ at $y = 0$.

    **Right inverse**: the identity.

    **Reference**: as for `Nonnegative`.

    Example:
        >>> import torch
        >>> Nonpositive()(torch.tensor([-2.0, 0.0]))
        tensor([-2.,  0.])
    """

    examples = (({}, ()),)
    expected_failures = no_derivative(KINK, "zero_params", "zeros", "ones")
    end, direction = 0.0, -1


@register("at_least", aliases=("greater_than_eq",))
class AtLeast(Bounded, ClosedHalfLine):
    r"""Numbers from a bound upwards.

    **Use**: floors that may be reached: a variance of at least $10^{-6}$, a margin, a least
    temperature.

    **Set**: $\{x \in \mathbb{R} : x \ge b\}$, elementwise. Dimension 1, closed.

    **Map**: that of `Nonnegative`, shifted by the bound $b$.

    **Right inverse**: the identity.

    **Reference**: as for `Nonnegative`.

    Args:
        bound: the bound $b$, finite.

    Raises:
        ValueError: if ``bound`` is not finite.

    Example:
        >>> import torch
        >>> AtLeast(bound=2)(torch.tensor([2.0, 3.0]))
        tensor([2., 3.])
    """

    examples = (({"bound": 0.5}, ()), ({"bound": -2.0}, ()))
    expected_failures = no_derivative(KINK, "zeros", "boundary")
    direction = 1


@register("at_most", aliases=("less_than_eq",))
class AtMost(Bounded, ClosedHalfLine):
    r"""Numbers up to a bound.

    **Use**: ceilings that may be reached: a log-scale of at most 5, a largest logit, a budget.

    **Set**: $\{x \in \mathbb{R} : x \le b\}$, elementwise. Dimension 1, closed.

    **Map**: that of `Nonpositive`, shifted by the bound $b$.

    **Right inverse**: the identity.

    **Reference**: as for `Nonnegative`.

    Args:
        bound: the bound $b$, finite.

    Raises:
        ValueError: if ``bound`` is not finite.

    Example:
        >>> import torch
        >>> AtMost(bound=2)(torch.tensor([1.0, 2.0]))
        tensor([1., 2.])
    """

    examples = (({"bound": 0.5}, ()), ({"bound": -2.0}, ()))
    expected_failures = no_derivative(KINK, "zeros", "ones")
    direction = -1
