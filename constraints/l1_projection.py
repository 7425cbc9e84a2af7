"""The nearest vector whose absolute values add up to a bound at most."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from constraints.derivatives import needs_derivative


def onto_l1_ball(y: Tensor, bound: float) -> Tensor:
    r"""The nearest vector with ``sum_i |x_i| <= bound``, a vector inside being its own.

    Outside it is ``sign(y_i) max(|y_i| - t, 0)`` with the one t for which the sum is the bound.
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
    # A shift of all entries shifts t, and an entry that is less than the largest one by more than
    # the bound ends at 0: so large vectors do not lose the digits of the bound.
    shifted = (size - size.amax(-1, keepdim=True)).clamp(min=-bound)
    threshold = (_sorted if needs_derivative(y) else _climbed)(shifted, bound)
    nearest = F.relu(shifted - threshold)
    return torch.where(size.sum(-1, keepdim=True) > bound, y.sign() * nearest, y)


def _sorted(shifted: Tensor, bound: float) -> Tensor:
    """The threshold of each vector, differentiably and without a look at numbers."""
    descending = shifted.sort(-1, descending=True).values
    count = torch.arange(1, shifted.shape[-1] + 1, dtype=shifted.dtype, device=shifted.device)
    threshold = ((descending.cumsum(-1) - bound) / count).amax(-1, keepdim=True)
    # The running sum has lost digits by then: one Newton step on the sum of the entries.
    above = F.relu(shifted - threshold)
    return threshold + (above.sum(-1, keepdim=True) - bound) / (above > 0).sum(-1, keepdim=True)


def _climbed(shifted: Tensor, bound: float) -> Tensor:
    """The same from below, by Newton's method: what ends at 0 is left out of the next mean.

    It takes a few passes, each of which is much shorter than the sorting.
    """
    count = shifted.new_full((*shifted.shape[:-1], 1), shifted.shape[-1])
    threshold = (shifted.sum(-1, keepdim=True) - bound) / count
    above = shifted > threshold
    while bool(((left := above.sum(-1, keepdim=True)) < count).any()):
        count = left
        threshold = ((shifted * above).sum(-1, keepdim=True) - bound) / count
        above &= shifted > threshold
    return threshold


def l1_ball_gradient(gradient: Tensor, y: Tensor, value: Tensor, bound: float) -> Tensor:
    """The gradient at y from that at ``value = onto_l1_ball(y, bound)``.

    Outside only the entries that are not 0 have one, and nothing along the sum of their sizes.
    """
    side = value.sign()
    count = side.abs().sum(-1, keepdim=True)
    tangent = (gradient - (gradient * side).sum(-1, keepdim=True) / count * side) * side.abs()
    return torch.where(y.abs().sum(-1, keepdim=True) > bound, tangent, gradient)


def beyond_l1_ball(y: Tensor, bound: float) -> Tensor:
    """How much less the largest entry of the nearest vector is: the t of `onto_l1_ball`, or 0.

    Of the way out of the ball it is the largest entry, whatever the number of entries, where the
    excess of the sum, in which the rounding errors of all entries add up, grows with it.
    """
    return (y - onto_l1_ball(y, bound)).abs().amax(-1)
