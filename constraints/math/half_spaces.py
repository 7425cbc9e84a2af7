"""Projections onto intersections of half-spaces, and onto sets by the half-spaces that touch them.

A set ``{x : f_k(x) <= 0 for all k}`` may have a simple retraction, but no formula for the nearest
member. Near a point z it is the intersection of the half-spaces
``f_k(z) + <n_k, x - z> <= 0`` with the gradients n_k, up to second order. Projections onto
these, repeated from the point that was found, approach the nearest member.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from constrained.torch_internals import linalg

#: How many times the functions are linearized; two are enough for a short step.
ROUNDS = 4

#: The most exchanges of `_multipliers`, and for how many of them the number of wrong indices may
#: fail to fall until only one index is exchanged at a time.
EXCHANGES, PATIENCE = 200, 3

#: What is added to the unit diagonal of a Gram matrix, since normals may be dependent.
RIDGE = 1e-12

#: The functions f_k at points of shape ``(batch, n)``, and their gradients: tensors of the shapes
#: ``(batch, m)`` and ``(batch, m, n)``. Where there are fewer than m, f_k is minus infinity.
Functions = Callable[[Tensor], tuple[Tensor, Tensor]]


def nearest_below(
    value: Tensor, functions: Functions, retract: Callable[[Tensor], Tensor], *, convex: bool
) -> Tensor:
    """Members of ``{x : f_k(x) <= 0}`` near given points, nearer than the retraction if possible.

    Args:
        value: shape ``(batch, n)``, in double precision.
        functions: the f_k.
        retract: gives members. It is applied to the result, and to the value, which is the result
            where that is no farther away.
        convex: whether the f_k are convex. Then all half-spaces contain the set, and those of
            earlier rounds are kept.

    Reference:
        Kelley, The cutting-plane method for solving convex programs (Journal of the Society for
        Industrial and Applied Mathematics 8, 1960), for convex functions.
    """
    plain, point = retract(value), value
    normals, excess = value.new_zeros((len(value), 0, value.shape[-1])), value.new_zeros(0)
    excess = value.new_zeros((len(value), 0))
    for _ in range(ROUNDS):
        level, gradients = functions(point)
        # How far the value itself is beyond each half-space.
        beyond = level + (gradients * (value - point).unsqueeze(-2)).sum(-1)
        if convex:
            normals, excess = torch.cat((normals, gradients), -2), torch.cat((excess, beyond), -1)
        else:
            normals, excess = gradients, beyond
        before, point = point, value - shift_into(normals, excess)
        if torch.equal(before, point):
            break
    usable = torch.isfinite(point).all(-1, keepdim=True)
    found = retract(torch.where(usable, point, value))
    nearer = linalg.vector_norm(found - value, dim=-1) < linalg.vector_norm(plain - value, dim=-1)
    return torch.where((nearer & usable.squeeze(-1)).unsqueeze(-1), found, plain)


def shift_into(normals: Tensor, excess: Tensor) -> Tensor:
    """The shortest s with ``<n_k, s> >= excess_k`` for all k.

    Args:
        normals: shape ``(batch, m, n)``.
        excess: shape ``(batch, m)``; minus infinity for a half-space that does not count.

    Returns:
        Tensor of shape ``(batch, n)``.
    """
    counts = torch.isfinite(excess) & torch.isfinite(normals).all(-1)
    normals = torch.where(counts.unsqueeze(-1), normals, 0)
    length = linalg.vector_norm(normals, dim=-1)
    counts = counts & (length > 0)
    unit = normals / torch.where(counts, length, 1).unsqueeze(-1)
    wanted = torch.where(counts, excess / torch.where(counts, length, 1), -torch.inf)
    if not bool((wanted > 0).any()):
        return torch.zeros_like(normals.sum(-2))
    return (_multipliers(unit @ unit.mT, wanted).unsqueeze(-2) @ unit).squeeze(-2)


def _multipliers(G: Tensor, c: Tensor) -> Tensor:
    """The l >= 0 with ``G l >= c`` and ``l' (G l - c) = 0``.

    Reference:
        Portugal, Judice and Vicente, A comparison of block pivoting and interior-point algorithms
        for linear least squares problems with nonnegative variables (Mathematics of Computation 63,
        1994).
    """
    identity = torch.eye(c.shape[-1], dtype=G.dtype, device=G.device)
    G, usable = G + RIDGE * identity, torch.isfinite(c)
    c = torch.where(usable, c, 0)
    rounding = 1e-12 * c.abs().amax(-1, keepdim=True)
    active = usable & (c > 0)
    fewest = torch.full_like(c[..., 0], torch.inf)
    patience = torch.full_like(fewest, PATIENCE)
    found = torch.zeros_like(c)
    for _ in range(EXCHANGES):
        both = active.unsqueeze(-1) & active.unsqueeze(-2)
        found = linalg.solve(torch.where(both, G, identity), torch.where(active, c, 0))
        missed = (G @ found.unsqueeze(-1)).squeeze(-1) - c
        wrong = torch.where(active, found < -rounding, usable & (missed < -rounding))
        count = wrong.sum(-1).to(c.dtype)
        if not bool(wrong.any()):
            break
        fell = count < fewest
        fewest, patience = torch.minimum(fewest, count), torch.where(fell, PATIENCE, patience - 1)
        # One index at a time, the last one, leads to the end surely, though more slowly.
        last = torch.arange(c.shape[-1], device=c.device) == _last(wrong).unsqueeze(-1)
        active = active ^ torch.where((patience >= 0).unsqueeze(-1), wrong, wrong & last)
    return torch.where(active, found, 0).clamp(min=0)


def _last(mask: Tensor) -> Tensor:
    return mask.shape[-1] - 1 - mask.flip(-1).int().argmax(-1)
