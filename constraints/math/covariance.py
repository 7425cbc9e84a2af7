"""Covariance matrices X X' that are positive definite despite rounding, and their roots."""

from __future__ import annotations

import torch
from torch import Tensor

from constrained.torch_internals import linalg
from constraints.math.autograd import needs_derivative
from constraints.math.gram import gram, is_mirrored
from constraints.math.matrix import symmetric_part
from constraints.math.transpose import plus_transpose


def covariance(X: Tensor) -> Tensor:
    """``X X'``, with its diagonal enlarged by a rounding term, so that it has a Cholesky factor."""
    rounding, finfo = rounding_of(X), torch.finfo(X.dtype)
    # Smaller squares are so close to underflow that they have lost digits.
    least = finfo.tiny / finfo.eps
    W = squares(X)
    if not needs_derivative(X):
        _diagonal(W).mul_(1 + rounding).clamp_(min=least)
        return W
    diagonal = _diagonal(W)
    enlarged = (1 + rounding) * diagonal
    enlarged = enlarged + (enlarged.clamp(min=least) - enlarged).detach()
    return W + torch.diag_embed(enlarged - diagonal)


def squares(X: Tensor) -> Tensor:
    """``X X'``, exactly symmetric."""
    if needs_derivative(X) or not is_mirrored(X.mT):
        return symmetric_part(X @ X.mT)
    return gram(X.mT)


def covariance_gradient(X: Tensor, gradient: Tensor) -> Tensor:
    """The gradient at X from that at ``covariance(X)``: one matrix product."""
    both = plus_transpose(gradient)
    _diagonal(both).mul_(1 + rounding_of(X))
    return both @ X


def thin_covariance_gradient(
    X: Tensor, left: Tensor, right: Tensor, on_the_diagonal: float
) -> Tensor:
    """``(G + G' + 2 d diag(G)) X`` for ``G = left' right`` and a number d."""
    both = torch.cat((left, right)).mT @ torch.cat((right @ X, left @ X))
    diagonal = (left * right).sum(0).mul_(2 * on_the_diagonal)
    return both.addcmul_(X, diagonal.unsqueeze(-1))


def root(value: Tensor) -> Tensor:
    """X with ``covariance(X) == value``, triangular if the value has a Cholesky factor."""
    W = symmetric_part(value)
    # diag(W) = (1 + rounding) diag(X X').
    rounding = rounding_of(W)
    A = W - torch.diag_embed(rounding / (1 + rounding) * _diagonal(W))
    L, info = linalg.cholesky_ex(A)
    eigenvalues, Q = linalg.eigh(A)
    square_root = Q * _clipped(eigenvalues, torch.finfo(W.dtype).eps).sqrt().unsqueeze(-2)
    return torch.where((info > 0)[..., None, None], square_root, L).contiguous()


def triangular_factor(A: Tensor) -> Tensor:
    """The lower triangular L with L L' = A A' and no negative number on its diagonal."""
    R = linalg.qr(A.mT, mode="r").R
    diagonal = R.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)
    return torch.where(diagonal < 0, -R, R).mT


def clipped(value: Tensor) -> Tensor:
    """The symmetric part if it has a Cholesky factor, else the nearest matrix that has one."""
    W = symmetric_part(value)
    eigenvalues, Q = linalg.eigh(W)
    eigenvalues = _clipped(eigenvalues, rounding_of(W))
    nearest = symmetric_part(Q * eigenvalues.unsqueeze(-2) @ Q.mT)
    inside = linalg.cholesky_ex(W).info == 0
    return torch.where(inside[..., None, None], W, nearest)


def reflected(W: Tensor) -> Tensor:
    """A symmetric matrix with its eigenvalues replaced by their absolute values."""
    eigenvalues, Q = linalg.eigh(W)
    return symmetric_part(Q * eigenvalues.abs().unsqueeze(-2) @ Q.mT)


def rounding_of(W: Tensor) -> float:
    """The relative size of the term that keeps the Cholesky factorization from breaking down.

    Computed, W = X X' errs by some eps |x_i| |x_j| in the entry i, j, and the factorization of W by
    as much again. Scaled to unit diagonal, both errors are matrices of norm n eps, up to a small
    factor. It was measured in single precision for n from 2 to 1024, on columns of similar, falling
    and rising size, and nearly dependent ones: n eps / 2 suffices up to n = 128, and 2 n eps for
    the blocked factorization of larger matrices that one column dominates.
    """
    return 2 * W.shape[-1] * torch.finfo(W.dtype).eps


def _diagonal(W: Tensor) -> Tensor:
    return W.diagonal(dim1=-2, dim2=-1)


def _clipped(eigenvalues: Tensor, relative: float) -> Tensor:
    """Eigenvalues raised to ``relative`` times the largest one, or to eps for a zero matrix."""
    finfo = torch.finfo(eigenvalues.dtype)
    largest = eigenvalues.abs().amax(-1, keepdim=True)
    least = torch.where(largest > finfo.tiny / finfo.eps, relative * largest, finfo.eps)
    return torch.maximum(eigenvalues, least)
