"""The projection onto the l1 ball: vectors whose absolute values add up to at most a bound."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from constrained.torch_internals import linalg
from constraints.math.autograd import needs_derivative

#: The length of the step in the gradient mapping at the boundary, in units of the bound.
_STEP = 0.1


def onto_l1_ball(y: Tensor, bound: float) -> Tensor:
    r"""The nearest vector with ``sum_i |x_i| <= bound``; a vector inside is returned bit for bit.

    Outside it is ``sign(y_i) max(|y_i| - t, 0)`` with the t for which the sum is the bound.
    Every set K of k entries has ``sum_K (|y_i| - t) <= sum_i max(|y_i| - t, 0) = bound``, with
    equality where K holds the entries above t, which are the k largest. So

    .. math:: t = \max_k \frac{|y|_{(1)} + \dots + |y|_{(k)} - \mathrm{bound}}{k}.

    Args:
        y: shape ``(*batch, n)``.
        bound: the sum, greater than zero.

    Reference:
        Duchi et al., Efficient projections onto the l1-ball (ICML 2008), section 4.
    """
    size = y.abs()
    total = size.sum(-1, keepdim=True)
    outside = total > bound
    # Shifting all entries shifts t as much, and an entry that is smaller than the largest one by
    # more than the bound becomes 0. So entries are shifted and clamped to between -bound and 0,
    # where the digits of the bound are not lost.
    largest = size.amax(-1, keepdim=True)
    shifted = (size - largest).clamp(min=-bound)
    if needs_derivative(y):
        threshold = threshold_of(shifted, bound)
    elif bool(outside.any()):
        mean = (shifted.sum(-1, keepdim=True) - bound) / y.shape[-1]
        threshold = _climbed(shifted, bound, torch.maximum(mean, -largest))
    else:
        return y.clone()
    nearest = F.relu(shifted - threshold)
    return torch.where(outside, y.sign() * nearest, y)


def rough_threshold(shifted: Tensor, bound: float) -> Tensor:
    """The t of each vector x with ``sum_i max(x_i - t, 0) = bound``, as the largest quotient."""
    descending = shifted.sort(-1, descending=True).values
    count = torch.arange(1, shifted.shape[-1] + 1, dtype=shifted.dtype, device=shifted.device)
    return ((descending.cumsum(-1) - bound) / count).amax(-1, keepdim=True)


def threshold_of(shifted: Tensor, bound: float) -> Tensor:
    """`rough_threshold` with all its digits, differentiable and traceable."""
    threshold = rough_threshold(shifted, bound)
    # The running sum has lost digits: one Newton step with the sum of the entries corrects it.
    above = F.relu(shifted - threshold)
    return threshold + (above.sum(-1, keepdim=True) - bound) / (above > 0).sum(-1, keepdim=True)


def _climbed(shifted: Tensor, bound: float, start: Tensor) -> Tensor:
    """The threshold of each vector, approached from below by Newton's method.

    It takes a few passes, each of which is much faster than sorting.
    """
    threshold = start
    count = torch.full_like(start, torch.inf)
    while True:
        rest = (shifted - threshold).relu_()
        excess = rest.sum(-1, keepdim=True) - bound
        left = rest.sign_().sum(-1, keepdim=True)
        if not bool((left < count).any()):
            return threshold
        # Rounding could move an entry across the threshold again and again. The loop ends because
        # the count of entries above it may only fall.
        count = torch.minimum(count, left)
        threshold = threshold + (excess / left).clamp(min=0)


def l1_ball_gradient(gradient: Tensor, value: Tensor, bound: float) -> Tensor:
    r"""The gradient for a step from an element.

    Inside it is the gradient itself. On the boundary it is the *gradient mapping* at the element x,

    .. math:: (x - \mathrm{onto}(x - t g)) / t, \qquad t = \mathrm{bound} / (10 \lVert g \rVert),

    which is 0 at an optimum and nowhere else, so that any optimizer comes to rest there: see
    `constraints.math.inward_gradient`. The smaller t is, the sooner a small entry becomes 0, and
    the shorter must be the steps of an optimizer. With a tenth of the bound, gradient descent,
    momentum, RMSprop and Adam reached sparse optima at constant rates from 0.003 to 0.1; with 0.03
    of the bound gradient descent circled around one.

    Args:
        gradient: shape ``(*batch, n)``.
        value: elements of the same shape.
        bound: the greatest sum of absolute values.
    """
    # A sum of n numbers has n rounding errors, most of which cancel.
    rounding = (4 + value.shape[-1] ** 0.5) * torch.finfo(value.dtype).eps
    boundary = value.abs().sum(-1, keepdim=True) >= bound * (1 - rounding)
    if value.is_cpu and not bool(boundary.any()):
        return gradient
    size = linalg.vector_norm(gradient, dim=-1, keepdim=True)
    t = _STEP * bound / torch.where(size > 0, size, 1)
    return torch.where(boundary, (value - onto_l1_ball(value - t * gradient, bound)) / t, gradient)


def beyond_l1_ball(y: Tensor, bound: float) -> Tensor:
    """The largest change of an entry by `onto_l1_ball`: its t, or 0 inside.

    Unlike the excess of the sum, in which the rounding errors of all entries add up, it does not
    grow with the number of entries.
    """
    return (y - onto_l1_ball(y, bound)).abs().amax(-1)
