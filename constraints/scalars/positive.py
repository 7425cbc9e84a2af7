"""The open half-lines: positive and negative numbers, and those beyond a bound."""

from __future__ import annotations

from constrained import register
from constraints.bases.half_line import Bounded, OpenHalfLine


@register("positive", aliases=("softplus_positive",))
class Positive(OpenHalfLine):
    r"""Positive numbers.

    **Use**: scales, lengthscales and variances, rates, temperatures, concentrations; diagonal
    covariances. Where zero may be reached take `nonnegative`.

    **Set**: $\{x \in \mathbb{R} : x > 0\}$, elementwise. Dimension 1, open.

    **Map**: softplus, $y \mapsto \log(1 + \exp(y))$, onto the set, down to the root of the smallest
    normal number ($10^{-19}$ in single precision), where a logarithm, a reciprocal and their
    derivatives are still finite. In float16 it goes down to the smallest normal number,
    $6 \cdot 10^{-5}$. A density that divides by higher powers is not finite there, such as that of
    a normal distribution with this standard deviation. For such a density take `GreaterThan` with a
    bound such as $10^{-8}$.

    **Right inverse**: $x \mapsto x + \log(1 - \exp(-x))$. The coordinate of a small $x$ is about
    $\log x$, with a rounding error of $\varepsilon \lvert \log x \rvert$, which is the relative
    error of the round trip. A zero, which is on the boundary, becomes the machine epsilon
    $\varepsilon$, as for `project`: at the smallest positive number the gradient would vanish with
    the value. A member below the least value of the map becomes that value.

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
    r"""Negative numbers.

    **Use**: decay: the diagonal of a stable state-space model in continuous time (S4D, Mamba),
    negative curvatures, the slopes of decreasing functions.

    **Set**: $\{x \in \mathbb{R} : x < 0\}$, elementwise. Dimension 1, open.

    **Map**: $y \mapsto -\log(1 + \exp(-y))$, onto the set, increasing.

    **Right inverse**: as for `Positive`, of $-x$. A zero becomes minus the machine epsilon.

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
    r"""Numbers above a bound.

    **Use**: positive scalars with a floor that is never reached: the scale of a density, the noise
    of a Gaussian process.

    **Set**: $\{x \in \mathbb{R} : x > b\}$, elementwise. Dimension 1, open.

    **Map**: $y \mapsto b + \log(1 + \exp(y))$, onto the set. Where rounding would give the bound,
    the value is a number just inside, with the same gradient.

    **Right inverse**: as for `Positive`, of $x - b$. The bound itself, which is not a member, is
    replaced by its projection.

    **Reference**: Stan Reference Manual, section "Lower bounded scalar", with softplus for exp.

    Args:
        bound: the bound $b$, finite.

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
    r"""Numbers below a bound.

    **Use**: numbers with a ceiling that is never reached, such as the growth rate of a process that
    must die out.

    **Set**: $\{x \in \mathbb{R} : x < b\}$, elementwise. Dimension 1, open.

    **Map**: $y \mapsto b - \log(1 + \exp(-y))$, onto the set, increasing. Where rounding would give
    the bound, the value is a number just inside, with the same gradient.

    **Right inverse**: as for `Positive`, of $b - x$. The bound itself, which is not a member, is
    replaced by its projection.

    **Reference**: Stan Reference Manual, section "Upper bounded scalar", with softplus for exp.

    Args:
        bound: the bound $b$, finite.

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
