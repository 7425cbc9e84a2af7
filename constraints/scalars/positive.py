"""The open half-lines: positive and negative numbers, and those beyond a bound."""

from __future__ import annotations

from constrained import register
from constraints.bases.half_line import Bounded, OpenHalfLine


@register("positive", aliases=("softplus_positive",))
class Positive(OpenHalfLine):
    """Positive numbers.

    **Set**: {x in R : x > 0}, elementwise. Dimension 1, open.

    **Map**: softplus, y -> log(1 + exp(y)), onto the set, down to the root of the smallest normal
    number (1e-19 in single precision), where a logarithm, a reciprocal and their derivatives are
    still finite. In float16 it goes down to the smallest normal number, 6e-5. A density that
    divides by higher powers is not finite there, such as that of a normal distribution with this
    standard deviation. For such a density take `GreaterThan` with a bound such as 1e-8.

    **Right inverse**: x -> x + log(1 - exp(-x)). The coordinate of a small x is about log(x), with
    a rounding error of eps |log(x)|, which is the relative error of the round trip. A zero, which
    is on the boundary, becomes the machine epsilon, as for `project`: at the smallest positive
    number the gradient would vanish with the value. A member below the least value of the map
    becomes that value.

    **Reference**: Dugas et al., Incorporating second-order functional knowledge for better option
    pricing (NIPS 2000). It is preferred to exp, whose gradient grows with the value.

    Example:
        >>> import torch
        >>> positive = Positive()
        >>> positive(torch.tensor([-1e6, 0.0, 5.0])) > 0
        tensor([True, True, True])
        >>> positive(positive.right_inverse(torch.tensor([0.1, 2.0])))
        tensor([0.1000, 2.0000])
    """

    examples = (({}, ()),)
    end, direction = 0.0, 1


@register("negative")
class Negative(OpenHalfLine):
    """Negative numbers.

    **Set**: {x in R : x < 0}, elementwise. Dimension 1, open.

    **Map**: y -> -softplus(-y), onto the set, increasing.

    **Right inverse**: as for `Positive`, of -x. A zero becomes minus the machine epsilon.

    **Reference**: as for `Positive`.

    Example:
        >>> import torch
        >>> Negative()(torch.tensor([-5.0, 0.0, 5.0]))
        tensor([-5.0067, -0.6931, -0.0067])
    """

    examples = (({}, ()),)
    end, direction = 0.0, -1


@register("greater_than", aliases=("lower_bounded",))
class GreaterThan(Bounded, OpenHalfLine):
    """Numbers above a bound.

    **Set**: {x in R : x > bound}, elementwise. Dimension 1, open.

    **Map**: y -> bound + softplus(y), onto the set. Where rounding would give the bound, the
    value is a number just inside, with the same gradient.

    **Right inverse**: as for `Positive`, of x - bound. The bound itself, which is not a member, is
    replaced by its projection.

    **Reference**: Stan Reference Manual, section "Lower bounded scalar", with softplus for exp.

    Args:
        bound: the bound, finite.

    Raises:
        ValueError: if ``bound`` is not finite.

    Example:
        >>> import torch
        >>> GreaterThan(bound=2)(torch.tensor([-1e6, 0.0, 5.0]))
        tensor([2.0000, 2.6931, 7.0067])
        >>> GreaterThan(bound=2)(torch.tensor(-1e6)) > 2
        tensor(True)
    """

    examples = (({"bound": 1.0}, ()), ({"bound": -20.0}, ()))
    direction = 1


@register("less_than", aliases=("upper_bounded",))
class LessThan(Bounded, OpenHalfLine):
    """Numbers below a bound.

    **Set**: {x in R : x < bound}, elementwise. Dimension 1, open.

    **Map**: y -> bound - softplus(-y), onto the set, increasing. Where rounding would give the
    bound, the value is a number just inside, with the same gradient.

    **Right inverse**: as for `Positive`, of bound - x. The bound itself, which is not a member, is
    replaced by its projection.

    **Reference**: Stan Reference Manual, section "Upper bounded scalar", with softplus for exp.

    Args:
        bound: the bound, finite.

    Raises:
        ValueError: if ``bound`` is not finite.

    Example:
        >>> import torch
        >>> LessThan(bound=-1)(torch.tensor([-5.0, 0.0, 1e6]))
        tensor([-6.0067, -1.6931, -1.0000])
        >>> LessThan(bound=-1)(torch.tensor(1e6)) < -1
        tensor(True)
    """

    examples = (({"bound": 1.0}, ()), ({"bound": -20.0}, ()))
    direction = -1
