"""Projections onto balls of p-norms, with a weight for each entry."""

from __future__ import annotations

import torch
from torch import Tensor

from constrained.torch_internals import linalg

#: The most steps of the two iterations; a dozen are usual. Bisection alone needs no more.
STEPS, INNER_STEPS = 200, 60

# Derivation. The z with ||z||_p <= 1 that minimizes sum_i s_i (z_i - a_i)^2 / 2, for a >= 0 with
# ||a||_p > 1, has ||z||_p = 1 and for some t > 0
#
#     s_i (z_i - a_i) + t z_i^(p-1) = 0.                                                       (1)
#
# For p = 2 that is z_i = s_i a_i / (s_i + t), and ||z(t)|| = 1 is a secular equation. For every p
# the norm of z(t) falls as t grows, and 1 / ||z(t)|| is almost linear in t, so that Newton's method
# on 1 / ||z(t)|| = 1 takes few steps. The root is kept between two bounds. With A = ||a||_p, not
# all z_i are less than a_i / A, and not all are more. So the root lies between the least and the
# largest of the t for which (1) gives z_i = a_i / A,
#
#     t_i = s_i a_i^(2-p) (A - 1) A^(p-2).
#
# A step that leads out of the bounds is replaced by their geometric mean.


@torch.no_grad()
def onto_scaled_ball(x: Tensor, scale: Tensor, bound: float, order: float) -> Tensor:
    """The vectors of p-norm at most ``bound`` that minimize ``sum_i scale_i (z_i - x_i)^2``.

    A vector inside is returned bit for bit.

    Args:
        x: shape ``(*batch, n)``.
        scale: positive, of the shape of ``x``.
        bound: greater than zero.
        order: the p, greater than 1 and finite.

    Reference:
        More, The Levenberg-Marquardt algorithm: implementation and theory (1978), section 5, for
        the secular equation; Conn, Gould and Toint, Trust-region methods (2000), section 7.3.3.
    """
    a = x.double().abs() / bound
    norm = linalg.vector_norm(a, order, dim=-1, keepdim=True)
    outside = norm > 1
    if not bool(outside.any()):
        return x.clone()
    a, norm = torch.where(outside, a, 2), torch.where(outside, norm, 2)
    s = scale.double()
    s = s / s.amax(-1, keepdim=True)
    z = _on_sphere(a, s, norm, order)
    return torch.where(outside, x.sign() * (z * bound).to(x.dtype), x)


def _on_sphere(a: Tensor, s: Tensor, norm: Tensor, order: float) -> Tensor:
    tiny, huge = torch.finfo(a.dtype).tiny, torch.finfo(a.dtype).max ** 0.9
    ends = s * a.clamp(min=tiny) ** (2 - order) * (norm - 1) * norm ** (order - 2)
    low = torch.where(a > 0, ends, torch.inf).amin(-1, keepdim=True).clamp(tiny, huge)
    high = torch.where(a > 0, ends, 0).amax(-1, keepdim=True).clamp(tiny, huge)
    t = low
    z, size = a, linalg.vector_norm(a, order, dim=-1, keepdim=True)
    for _ in range(STEPS):
        z, slope = _entries(a, s, t, order)
        size = linalg.vector_norm(z, order, dim=-1, keepdim=True)
        low, high = torch.where(size >= 1, t, low), torch.where(size <= 1, t, high)
        if bool(((size - 1).abs() <= 4 * torch.finfo(a.dtype).eps).logical_or(high <= low).all()):
            break
        # The derivative of the norm is sum_i (z_i / size)^(p-1) dz_i / dt.
        fall = -((z / size) ** (order - 1) * slope).sum(-1, keepdim=True)
        step = t + size * (size - 1) / fall.clamp(min=tiny)
        inside = (step > low) & (step < high)
        t = torch.where(inside, step, low.sqrt() * high.sqrt())
    return z / size


def _entries(a: Tensor, s: Tensor, t: Tensor, order: float) -> tuple[Tensor, Tensor]:
    """The z that solve (1) and their derivatives with respect to t."""
    if order == 2:
        z = s * a / (s + t)
        return z, -z / (s + t)
    # In z for p > 2, and in q = z^(p-1) for p < 2, the left side of (1) is convex and grows. Both
    # a and the solution without the first z_i are upper bounds, from which Newton's method falls.
    k = max(1.0, 1 / (order - 1))
    m = k * (order - 1)
    q = torch.minimum(a ** (1 / k), (s * a / t) ** (1 / m))
    for _ in range(INNER_STEPS):
        rest = s * (q**k - a) + t * q**m
        growth = s * k * q ** (k - 1) + t * m * q ** (m - 1)
        before, q = q, (q - rest / growth.clamp(min=torch.finfo(a.dtype).tiny)).clamp(min=0)
        if not bool((before - q > 4 * torch.finfo(a.dtype).eps * before).any()):
            break
    z = q**k
    power = torch.where(z > 0, z, 1) ** (order - 2)
    return z, torch.where(z > 0, -z * power / (s + t * (order - 1) * power), 0)
