"""The nearest vector whose absolute values add up to a bound at most."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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
    descending = shifted.sort(-1, descending=True).values
    count = torch.arange(1, y.shape[-1] + 1, dtype=y.dtype, device=y.device)
    threshold = ((descending.cumsum(-1) - bound) / count).amax(-1, keepdim=True)
    # The running sum has lost digits by then: one Newton step on the sum of the entries.
    above = F.relu(shifted - threshold)
    excess = (above.sum(-1, keepdim=True) - bound) / (above > 0).sum(-1, keepdim=True)
    nearest = F.relu(shifted - (threshold + excess))
    return torch.where(size.sum(-1, keepdim=True) > bound, y.sign() * nearest, y)


def beyond_l1_ball(y: Tensor, bound: float) -> Tensor:
    """How much less the largest entry of the nearest vector is: the t of `onto_l1_ball`, or 0.

    Of the way out of the ball it is the largest entry, whatever the number of entries, where the
    excess of the sum, in which the rounding errors of all entries add up, grows with it.
    """
    return (y - onto_l1_ball(y, bound)).abs().amax(-1)
