"""The doubly stochastic matrix nearest to a matrix, in the Frobenius norm."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from constrained.torch_internals import linalg
from constraints.math.l1_projection import rough_threshold

#: The largest number of Newton steps at one scale of the matrix, and of halvings of a step.
STEPS, HALVINGS = 100, 40


# Derivation. With the condition on the column sums moved into the objective by multipliers v, the
# problem separates into rows: row i of W is the point of the simplex nearest to X_i - v. The dual
# function is
#
#     phi(v) = sum_i max_w (w'(X_i - v) - w'w / 2) + sum_j v_j,        grad phi = 1 - c,
#
# with the column sums c of W. It is convex and piecewise quadratic. Let M be the matrix that is 1
# where W is not 0, else 0, and m the sums of its rows: the Hessian is diag(M'1) - M' diag(1/m) M,
# the Laplacian of a graph. Newton's method ends after finitely many steps. As in `sinkhorn`, large
# matrices are reached by doubling small ones, which warm-starts v. Instead of v the difference
# Z = X - v is stored, so that entries next to 0 lose no digits.


def nearest_doubly_stochastic(X: Tensor) -> Tensor:
    """The projection of X onto the doubly stochastic matrices.

    Args:
        X: shape ``(*batch, n, n)``, finite.

    Returns:
        Tensor of the same shape and dtype; not differentiable.

    Example:
        >>> nearest_doubly_stochastic(torch.tensor([[9.0, 0.0], [0.0, 0.0]]))
        tensor([[1., 0.],
                [0., 1.]])

    Reference:
        Li, Sun and Toh, On the efficient computation of a projector over the Birkhoff polytope
        (Mathematical Programming 179, 2020).
    """
    if X.numel() == 0 or X.is_meta:
        return torch.empty_like(X)
    eps = torch.finfo(torch.float64).eps
    Z = X.detach().double()
    Z = Z - Z.amax(-1, keepdim=True)
    Z = Z - Z.amax(-2, keepdim=True)
    doublings = max(0, math.ceil(math.log2(max(float(Z.abs().amax()), 1.0) / 4)))
    Z = Z * 2.0**-doublings
    W = _rows(Z)
    for left in range(doublings, -1, -1):
        target = 4 * eps if left == 0 else 0.1
        for _ in range(STEPS):
            excess = W.sum(-2, keepdim=True) - 1
            if bool((excess.abs() <= target).all()):
                break
            step = _newton_step(W, excess)
            Z, W, moved = _search(Z, W, step, excess)
            if not moved:
                break
        if left:
            Z = 2 * (Z - Z.amax(-1, keepdim=True))
            W = _rows(Z)
    for _ in range(2):
        W = W / W.sum(-2, keepdim=True)
        W = W / W.sum(-1, keepdim=True)
    return W.to(X.dtype)


def _rows(Z: Tensor) -> Tensor:
    """The point of the simplex nearest to each row."""
    shifted = (Z - Z.amax(-1, keepdim=True)).clamp(min=-1)
    W = F.relu(shifted - rough_threshold(shifted, 1))
    # The division keeps zeros: the Newton step depends on which entries are positive.
    return W / W.sum(-1, keepdim=True)


def _newton_step(W: Tensor, excess: Tensor) -> Tensor:
    active = (W > 0).to(W.dtype)
    weights = active.mT @ (active / active.sum(-1, keepdim=True))
    weights = weights - torch.diag_embed(weights.diagonal(dim1=-2, dim2=-1))
    # The damping vanishes with the error, so that the last steps are full Newton steps.
    damping = 0.1 * excess.abs().amax(-1).clamp(1e-12, 1)
    H = torch.diag_embed(weights.sum(-1) + damping) - weights + 1 / W.shape[-1]
    factor, _ = linalg.cholesky_ex(H)
    return torch.cholesky_solve(excess.mT, factor).mT


def _search(Z: Tensor, W: Tensor, step: Tensor, excess: Tensor) -> tuple[Tensor, Tensor, bool]:
    """Z and W after a line search, in which each element takes the longest step that lowers phi.

    Steps are halved until phi falls enough. The last result is whether any element has moved.
    """
    slope = -(step * excess).sum((-2, -1))
    before = _value(Z, W)
    length = torch.ones_like(slope)
    rounding = torch.finfo(Z.dtype).eps * ((W * Z).abs().sum((-2, -1)) + Z.shape[-1])
    good = torch.zeros_like(slope, dtype=torch.bool)
    new_Z, new_W = Z, W
    for _ in range(HALVINGS):
        moved = length[..., None, None] * step
        trial = Z - moved
        trial_W = _rows(trial)
        fall = _value(trial, trial_W) + moved.sum((-2, -1)) - before
        # Near the end phi is flat up to rounding.
        fits = ~good & (fall <= 1e-4 * length * slope + rounding)
        new_Z = torch.where(fits[..., None, None], trial, new_Z)
        new_W = torch.where(fits[..., None, None], trial_W, new_W)
        good = good | fits
        if bool(good.all()):
            break
        length = torch.where(good, length, length / 2)
    return new_Z, new_W, bool(good.any())


def _value(Z: Tensor, W: Tensor) -> Tensor:
    return (W * (Z - W / 2)).sum((-2, -1))
