"""Projections onto simplex and l1 ball with a weight for each entry."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Derivation. The vector z >= 0 with the sum r that minimizes sum_i s_i (z_i - x_i)^2 is
#
#     z_i = max(x_i - t w_i, 0)      with      w_i = 1 / s_i,
#
# by the conditions of Karush, Kuhn and Tucker, where t is the root of f(t) = sum_i z_i - r. This f
# falls and is convex, and linear between the points x_i / w_i. At t_0 = (sum_i x_i - r) / sum_i w_i
# it is not negative, since z_i >= x_i - t w_i. So from there Newton's method climbs to the root
# from the left. Each step leaves entries out for good, and the last one is exact.


@torch.no_grad()
def onto_scaled_simplex(x: Tensor, scale: Tensor, total: float) -> Tensor:
    """The vectors z >= 0 of a given sum that minimize ``sum_i scale_i (z_i - x_i)^2``.

    Args:
        x: shape ``(*batch, n)``.
        scale: positive, of the shape of ``x``. Ratios beyond 1e300 count as 1e300.
        total: the sum, greater than zero.

    Reference:
        Helgason, Kennington and Lall, A polynomially bounded algorithm for a singly constrained
        quadratic program (Mathematical Programming 18, 1980).
    """
    wide, w = x.double(), _shares(scale)
    t = (wide.sum(-1, keepdim=True) - total) / w.sum(-1, keepdim=True)
    count = torch.full_like(t, torch.inf)
    while True:
        z = F.relu(wide - t * w)
        used = z > 0
        excess, slope = z.sum(-1, keepdim=True) - total, (w * used).sum(-1, keepdim=True)
        t = t + torch.where(slope > 0, excess / slope, 0)
        left = used.sum(-1, keepdim=True).to(t.dtype)
        # Rounding could move an entry across zero again and again, but the count may only fall.
        if not bool((left < count).any()):
            break
        count = torch.minimum(count, left)
    z = F.relu(wide - t * w)
    found = z.sum(-1, keepdim=True)
    return (z * (total / torch.where(found > 0, found, 1))).to(x.dtype)


def onto_scaled_l1_ball(x: Tensor, scale: Tensor, bound: float) -> Tensor:
    """The vectors with ``sum_i |z_i| <= bound`` that minimize ``sum_i scale_i (z_i - x_i)^2``.

    A vector inside is returned bit for bit.

    Args:
        x: shape ``(*batch, n)``.
        scale: positive, of the shape of ``x``.
        bound: greater than zero.
    """
    size = x.abs()
    outside = size.sum(-1, keepdim=True) > bound
    if not bool(outside.any()):
        return x.clone()
    return torch.where(outside, x.sign() * onto_scaled_simplex(size, scale, bound), x)


def _shares(scale: Tensor) -> Tensor:
    """``1 / scale`` in units of its largest entry, in double precision."""
    scale = scale.double()
    return (scale.amin(-1, keepdim=True) / scale).clamp(min=1e-300)
