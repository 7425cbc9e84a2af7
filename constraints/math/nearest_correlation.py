"""The correlation matrix nearest to a symmetric matrix, in the Frobenius norm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from constrained.torch_internals import linalg
from constraints.math.matrix import symmetric_part

#: The largest number of Newton steps, and of halvings of a step.
STEPS, HALVINGS = 100, 40

#: A step is taken if it gains this share of what its slope promises.
_ARMIJO = 1e-4


# Derivation. With multipliers y for the diagonal, the nearest matrix is W(y), the positive
# semidefinite part of S + diag(y), and the dual function is
#
#     phi(y) = |W(y)|^2 / 2 - sum_i y_i,        grad phi = diag W(y) - 1.
#
# It is convex, and its gradient is strongly semismooth. Let Q and l be the eigenvectors and
# eigenvalues of S + diag(y). The derivative of the positive part in the direction H is
# D(H) = Q (O * Q'HQ) Q' with O_kl = (max(l_k, 0) - max(l_l, 0)) / (l_k - l_l), so the Hessian takes
# h to diag D(diag(h)), which conjugate gradients need only. Of y(S), defined by diag W = 1, the
# derivative in the direction H is -J^{-1} diag D(H), for the Hessian J; so that of the nearest
# matrix is D(H) - D(diag(J^{-1} diag D(H))), which is self-adjoint as D is.


class _Nearest(torch.autograd.Function):
    """The nearest correlation matrix of symmetric matrices in double precision."""

    @staticmethod
    def forward(ctx: Any, S: Tensor) -> Tensor:
        W, eigenvalues, Q = _solve(S)
        ctx.save_for_backward(Q, _ratios(eigenvalues))
        return W

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride] - the decorator hides the names
        (gradient,), (Q, ratios) = gradients, ctx.saved_tensors
        direct = _derivative(Q, ratios, symmetric_part(gradient))
        shift = _conjugate_gradients(
            _hessian(Q, ratios), _diagonal(direct), torch.finfo(Q.dtype).eps
        )
        return direct - _derivative(Q, ratios, torch.diag_embed(shift))


def nearest_correlation(X: Tensor) -> Tensor:
    """The positive semidefinite matrix with unit diagonal that is nearest to the symmetric part.

    Args:
        X: shape ``(*batch, n, n)``, finite.

    Returns:
        Tensor of the same shape and dtype, up to rounding in the set. It has a first
        derivative, and no second one.

    Example:
        >>> nearest_correlation(torch.tensor([[3.0, 2.0], [2.0, 1.0]]))
        tensor([[1., 1.],
                [1., 1.]])

    Reference:
        Qi and Sun, A quadratically convergent Newton method for computing the nearest correlation
        matrix (SIAM J. Matrix Anal. Appl. 28, 2006).
    """
    if X.numel() == 0 or X.is_meta:
        return torch.empty_like(X)
    apply: Callable[[Tensor], Tensor] = _Nearest.apply  # pyright: ignore[reportUnknownVariableType] - torch declares no types here
    return apply(symmetric_part(X).double()).to(X.dtype)


def _solve(S: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The nearest matrices, and the eigenvalues and eigenvectors of ``S + diag(y)``."""
    y = 1 - _diagonal(S)
    target = 4 * S.shape[-1] * torch.finfo(S.dtype).eps
    W, eigenvalues, Q, dual = _positive_part(S, y)
    for _ in range(STEPS):
        excess = _diagonal(W) - 1
        if bool((excess.abs() <= target).all()):
            break
        # Few conjugate gradients while far away, many near the solution: Newton's rate is kept.
        exactness = min(0.1, float(excess.abs().amax()))
        step = -_conjugate_gradients(_hessian(Q, _ratios(eigenvalues)), excess, exactness)
        slope, length = (excess * step).sum(-1), torch.ones_like(dual)
        size = linalg.vector_norm(excess, dim=-1)
        for _ in range(HALVINGS):
            trial = _positive_part(S, y + length.unsqueeze(-1) * step)
            # Next to the solution the dual function does not change any more, in its rounding.
            is_nearer = linalg.vector_norm(_diagonal(trial[0]) - 1, dim=-1) <= size / 2
            good = (trial[3] <= dual + _ARMIJO * length * slope) | is_nearer
            if bool(good.all()):
                break
            length = torch.where(good, length, length / 2)
        else:
            break
        y = y + length.unsqueeze(-1) * step
        W, eigenvalues, Q, dual = trial
    return W, eigenvalues, Q


def _positive_part(S: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    eigenvalues, Q = linalg.eigh(S + torch.diag_embed(y))
    positive = F.relu(eigenvalues)
    W = symmetric_part(Q * positive.unsqueeze(-2) @ Q.mT)
    return W, eigenvalues, Q, positive.square().sum(-1) / 2 - y.sum(-1)


def _ratios(eigenvalues: Tensor) -> Tensor:
    """``(max(l_k, 0) - max(l_l, 0)) / (l_k - l_l)``; 1 or 0 where both have the same sign."""
    positive = F.relu(eigenvalues)
    rise = positive.unsqueeze(-1) - positive.unsqueeze(-2)
    run = eigenvalues.unsqueeze(-1) - eigenvalues.unsqueeze(-2)
    up = eigenvalues > 0
    mixed = up.unsqueeze(-1) != up.unsqueeze(-2)
    both = (up.unsqueeze(-1) & up.unsqueeze(-2)).to(eigenvalues.dtype)
    return torch.where(mixed, rise / torch.where(mixed, run, 1), both)


def _derivative(Q: Tensor, ratios: Tensor, H: Tensor) -> Tensor:
    return symmetric_part(Q @ (ratios * (Q.mT @ H @ Q)) @ Q.mT)


def _hessian(Q: Tensor, ratios: Tensor) -> Callable[[Tensor], Tensor]:
    """``h`` to the diagonal of the derivative in the direction ``diag(h)``.

    Pairs of eigenvectors of which neither has a positive eigenvalue have the ratio zero, and those
    with two positive ones the ratio one. So products with the rarer kind are enough.
    """
    positive = _diagonal(ratios) > 0
    up, down = (int(kind.sum(-1).max()) for kind in (positive, ~positive))
    are_positive = up <= down
    if are_positive:
        others, some = slice(0, Q.shape[-1] - up), slice(Q.shape[-1] - up, None)
        weights = ratios[..., some, :].clone()
    else:
        some, others = slice(0, down), slice(down, None)
        weights = 1 - ratios[..., some, :]
    weights[..., others] *= 2  # for the pairs in the other order
    vectors = Q[..., some].mT

    def times(h: Tensor) -> Tensor:
        inner = (vectors * h.unsqueeze(-2)) @ Q
        found = (vectors * ((weights * inner) @ Q.mT)).sum(-2)
        return found if are_positive else h - found

    return times


def _conjugate_gradients(times: Callable[[Tensor], Tensor], b: Tensor, exactness: float) -> Tensor:
    """The solution x of ``times(x) = b``, up to a residual of ``exactness`` relative to b."""
    x, residual = torch.zeros_like(b), b
    direction, square = residual, b.square().sum(-1, keepdim=True)
    target = exactness**2 * square
    for _ in range(2 * b.shape[-1]):
        if bool((square <= target).all()):
            break
        image = times(direction)
        curvature = (direction * image).sum(-1, keepdim=True)
        length = torch.where(curvature > 0, square / torch.where(curvature > 0, curvature, 1), 0)
        x, residual = x + length * direction, residual - length * image
        before, square = square, residual.square().sum(-1, keepdim=True)
        direction = residual + torch.where(before > 0, square / before, 0) * direction
    return x


def _diagonal(W: Tensor) -> Tensor:
    return W.diagonal(dim1=-2, dim2=-1)
