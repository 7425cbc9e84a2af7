"""The doubly stochastic scaling of a positive matrix, with exact derivatives of every order."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from constrained.torch_internals import linalg
from constraints.math.autograd import differentiable
from constraints.math.matrix import all_finite

#: Sums that differ from 1 by at most this many units of the machine epsilon count as 1.
ROUNDING = 2.0

#: The largest number of rounds of division by the sums at the end.
POLISH = 2

#: The largest number of Newton steps at one scale of the logits.
NEWTON = 100

#: The number of conjugate gradient steps after which the backward factors a matrix instead.
CONJUGATE = 24


def sinkhorn(X: Tensor) -> Tensor:
    r"""The doubly stochastic matrix ``diag(u) exp(X) diag(v)``, with u, v > 0.

    There is exactly one, and it is

    .. math:: \arg\max_W \; \langle W, X \rangle - \sum\nolimits_{ij} W_{ij} \log W_{ij}

    over the doubly stochastic matrices: the gradient, with respect to X, of a convex function. It
    does not change when a constant is added to a row or a column of X.

    Rows and columns are divided by their sums in turn until the sums are 1 up to rounding. That
    takes a few rounds if the matrix is near the one with all entries 1/n. If it is slow, as for
    logits of large spread, Newton's method on the dual finds u and v, from small logits to large
    ones.

    NaN or infinity in an element gives NaN in that element.

    Args:
        X: shape ``(*batch, n, n)``, the logits, in single or double precision.

    Returns:
        Tensor of the same shape.

    Example:
        >>> sinkhorn(torch.tensor([[0.0, 1.0], [2.0, 3.0]]))
        tensor([[0.5000, 0.5000],
                [0.5000, 0.5000]])

    Reference:
        Sinkhorn and Knopp, Concerning nonnegative matrices and doubly stochastic matrices (Pacific
        Journal of Mathematics 21, 1967); Knight and Ruiz, A fast algorithm for matrix balancing
        (IMA Journal of Numerical Analysis 33, 2013), for Newton's method; Eisenberger et al., A
        unified framework for implicit Sinkhorn differentiation (CVPR 2022).
    """
    return _sinkhorn(X)


# ------------------------------------------------------------------------------------ the value


def _scale(X: Tensor) -> Tensor:
    if X.numel() == 0:
        return X.clone(memory_format=torch.contiguous_format)
    # A sum with an infinite or NaN term is not finite.
    if bool(torch.isfinite(X.sum())):
        W, done = _alternate(_shifted(X))
        finite = None
    else:
        finite = all_finite(X)
        X = torch.where(finite, X, 0)
        W, done = _alternate(_shifted(X))
    if not bool(done.all()):
        hard = ~done
        W[hard] = _newton(_shifted(X[hard]).double()).to(X.dtype)
    return W if finite is None else torch.where(finite, W, torch.nan)


def _shifted(X: Tensor) -> Tensor:
    """The same logits up to constants, with 0 as the largest entry of each row and column."""
    Y = (X - X.amax(-1, keepdim=True)).contiguous()
    return Y.sub_(Y.amax(-2, keepdim=True))


def _alternate(Y: Tensor) -> tuple[Tensor, Tensor]:
    """Sinkhorn's iteration, in place in Y, and which elements of the batch have converged."""
    eps, n = torch.finfo(Y.dtype).eps, Y.shape[-1]
    # Newton's method costs about n alternating steps: it is used where more would be needed.
    slow, steps = 1 - 16 / (n + 32), n + 32
    K = Y.exp_()
    v = 1 / K.sum(-2, keepdim=True)
    u, before = v.mT, torch.full_like(v[..., 0, 0], torch.inf)
    for _ in range(steps):
        u = 1 / (K @ v.mT)
        better = 1 / (u.mT @ K)
        # The rows are scaled to sums of 1, so the change of v is the error of the columns.
        error = (v / better - 1).abs().amax((-2, -1))
        v = better
        if bool(((error <= ROUNDING * eps) | ~(error < slow * before)).all()):
            break
        before = error
    W = K.mul_(u).mul_(v)
    # Sums computed by matrix products have larger rounding errors than these.
    for _ in range(POLISH):
        W.div_(W.sum(-2, keepdim=True))
        rows = W.sum(-1, keepdim=True)
        W.div_(rows)
        if bool(((rows - 1).abs() <= ROUNDING * eps).all()):
            break
    return W, _error(W) <= 3 * ROUNDING * eps


def _error(W: Tensor) -> Tensor:
    rows, columns = W.sum(-1), W.sum(-2)
    return torch.maximum((rows - 1).abs(), (columns - 1).abs()).amax(-1)


# Derivation. With the rows of W = exp(X - f - g') normalized by f, what is left is to minimize
#
#     phi(g) = sum_i log sum_j exp(X_ij - g_j) + sum_j g_j,     grad phi = 1 - c,
#
# with the column sums c of W. It is convex, and its Hessian diag(c) - W'W is the Laplacian of a
# graph with the weights (W'W)_jk: the diagonal is the sum of the other entries of a row. Computed
# that way, no small weight is lost beside a larger one. Along a step d of range |d| the Hessian
# changes by a factor of exp(|d|) at most: so the step is shortened to log(1 + |d|) / |d| of itself.
#
# Large logits are reached by doubling small ones. Doubling Z = X - f - g' warm-starts f and g.


def _newton(X: Tensor) -> Tensor:
    eps = torch.finfo(X.dtype).eps
    doublings = max(0, math.ceil(math.log2(max(float(X.abs().amax()), 1.0) / 4)))
    Z = X * 2.0**-doublings
    for left in range(doublings, -1, -1):
        target = ROUNDING * eps if left == 0 else 0.1
        before = torch.full_like(Z[..., 0, 0], torch.inf)
        for _ in range(NEWTON):
            Z = Z - torch.logsumexp(Z, -1, keepdim=True)
            W = torch.exp(Z)
            excess = W.sum(-2) - 1
            error = excess.abs().amax(-1)
            if bool((error <= target).all()) or (
                bool((error <= 1e3 * eps).all()) and not bool((error < before).any())
            ):
                break
            before = error
            factor, _ = linalg.cholesky_ex(_laplacian(W, eps))
            step = torch.cholesky_solve(excess.unsqueeze(-1), factor).mT
            reach = step.amax(-1, keepdim=True) - step.amin(-1, keepdim=True)
            Z = Z - step * torch.where(reach > 1, reach.log1p() / reach, 1)
        Z = 2 * Z if left else Z
    W = torch.exp(Z)
    W = W / W.sum(-2, keepdim=True)
    return W / W.sum(-1, keepdim=True)


def _laplacian(W: Tensor, eps: float) -> Tensor:
    """``I - W'W`` for a doubly stochastic W, with its null vector 1 and rounding added."""
    weights = W.mT @ W
    weights = weights - torch.diag_embed(weights.diagonal(dim1=-2, dim2=-1))
    degree = weights.sum(-1) + ROUNDING * eps
    return torch.diag_embed(degree) - weights + 1 / W.shape[-1]


# ------------------------------------------------------------------------------- its derivative

# Derivation. dW = W * (dX - a 1' - 1 b') with a, b such that the sums of dW vanish:
#
#     [ I   W ] [a]   [ (W * dX)  1 ]
#     [ W'  I ] [b] = [ (W * dX)' 1 ],      hence     (I - W'W) b = (W * dX)' 1 - W' (W * dX) 1.
#
# W is the gradient of a convex function, so the map dX -> dW is self-adjoint and serves as the
# backward too. The matrix is the Laplacian above. It is singular in the direction 1, along which b
# may change without any effect on dW.


def derivative(W: Tensor, V: Tensor) -> Tensor:
    """The derivative of the scaling at its value W in direction V; differentiable."""
    eps, dtype = torch.finfo(W.dtype).eps, V.dtype
    # In double precision: the nearer W is to a permutation, the nearer the matrix is to singular.
    W, V = W.double(), V.double()
    M = W * V
    rows = M.sum(-1, keepdim=True)
    right = M.sum(-2).unsqueeze(-1) - W.mT @ rows
    factor, _ = linalg.cholesky_ex(_laplacian(W, eps))
    b = torch.cholesky_solve(right, factor)
    return (M - W * (rows - W @ b + b.mT)).to(dtype)


def _gradient(W: Tensor, V: Tensor) -> Tensor:
    """`derivative`, not differentiable, by conjugate gradients where they converge soon."""
    M = W * V
    rows = M.sum(-1, keepdim=True)
    r = M.sum(-2).unsqueeze(-1) - W.mT @ rows
    r = r - r.mean(-2, keepdim=True)
    b, p = torch.zeros_like(r), r
    old = (r * r).sum(-2, keepdim=True)
    enough = torch.finfo(W.dtype).eps ** 2 * old
    for _ in range(CONJUGATE):
        if bool((old <= enough).all()):
            return M.addcmul_(W, W @ b - rows).addcmul_(W, b.mT, value=-1).contiguous()
        q = p - W.mT @ (W @ p)
        curvature = (p * q).sum(-2, keepdim=True)
        length = torch.where(old > enough, old / curvature, 0)
        b, r = b + length * p, r - length * q
        new = (r * r).sum(-2, keepdim=True)
        p = r + torch.where(old > enough, new / old, 0) * p
        old = new
    return derivative(W, V).contiguous()


_sinkhorn = differentiable(
    "constraints::sinkhorn",
    _scale,
    "constraints::sinkhorn_gradient",
    _gradient,
    derivative,
    saves_input=False,
)
