"""Isotonic regression: the nearest vector that does not decrease."""

from __future__ import annotations

import torch
from torch import Tensor


def isotonic(x: Tensor) -> Tensor:
    r"""The nearest vector, in the Euclidean norm, whose entries do not decrease.

    By the min-max formula, without a loop over the entries, with :math:`O(n^2)` memory:

    .. math:: z_i = \max_{j \le i} \min_{k \ge i} \frac{x_j + \dots + x_k}{k - j + 1}.

    Args:
        x: shape ``(*batch, n)``.

    Reference:
        Robertson, Wright and Dykstra, Order Restricted Statistical Inference (1988), theorem 1.4.4.

    Example:
        >>> isotonic(torch.tensor([1.0, 3.0, 2.0, 4.0]))
        tensor([1.0000, 2.5000, 2.5000, 4.0000])
    """
    n = x.shape[-1]
    # In double precision, since differences of running sums lose digits.
    sums = torch.nn.functional.pad(x.double().cumsum(-1), (1, 0))
    index = torch.arange(n, device=x.device)
    count = index - index.unsqueeze(-1) + 1
    means = (sums[..., None, 1:] - sums[..., :-1, None]) / count.clamp(min=1)
    # Row j, column k: a mean over no entries, k < j, is no candidate.
    means = means.masked_fill(count < 1, torch.inf)
    least = means.flip(-1).cummin(-1).values.flip(-1)
    least = least.masked_fill(count < 1, -torch.inf)
    return least.amax(-2).to(x.dtype)
