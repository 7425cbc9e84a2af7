"""The matrix whose singular values are cut at a bound, with exact derivatives of every order."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from constrained.constraint.precision import autocast_disabled
from constraints.math import polar
from constraints.math.autograd import (
    DirectFunction,
    goes_by_operator,
    has_numbers,
    in_front,
    nestable,
    untraced,
)
from constraints.math.clipped_spectrum import ROUNDING, clipped_and_vectors, decomposed


def clip_singular_values(X: Tensor, bound: float) -> Tensor:
    r"""The matrix nearest to X among those with singular values of at most ``bound``.

    It is ``U min(S, bound) V'`` for ``X = U S V'``, the nearest in the Frobenius norm. A matrix
    without larger singular values comes back bit for bit (as a copy), its derivative being the
    identity. Where a singular value equals the bound the map has a kink; everywhere its derivative
    enlarges nothing. NaN and infinity in an element give NaN in that element.

    Args:
        X: shape ``(*batch, n, p)``, real, single or double precision.
        bound: the largest singular value, positive.

    Returns:
        Tensor of the same shape.

    Example:
        >>> clip_singular_values(torch.tensor([[4.0, 0.0], [0.0, -0.5]]), 1.0)
        tensor([[ 1.0000,  0.0000],
                [ 0.0000, -0.5000]])
    """
    if X.shape[-2] < X.shape[-1]:
        return clip_singular_values(X.mT, bound).mT.contiguous()
    if goes_by_operator():
        return _clip_op(X, bound)
    return _Clip.apply(X, bound)


def _clip(X: Tensor, bound: float) -> Tensor:
    return clipped_and_vectors(X, bound)[0]


# ------------------------------------------------------------------------------- its derivative

# Derivation of the first derivative. For X = U S V' and the clipped values a = min(s, b), a change
# of X with M = U' dX V, split into its symmetric and its skew part, changes U a V' by
#
#     U (Gamma * sym M + Delta * skew M) V' + (I - U U') dX V (a / s) V',
#     Gamma_ij = (a_i - a_j) / (s_i - s_j),     Delta_ij = (a_i + a_j) / (s_i + s_j).
#
# All weights lie between 0 and 1. They are 1 where both singular values are below the bound, so
# that it is better to say what is lost. Two singular values are on different sides of the bound
# where their difference occurs: it is no small number by cancellation.


def _gradient(X: Tensor, W: Tensor, V: Tensor, bound: float) -> Tensor:
    """The derivative of the clipped matrix W of a tall X in direction V; self-adjoint."""
    same = _same(X, W)
    if bool(same.all()):
        return V.clone(memory_format=torch.contiguous_format)
    U, s, Vh, limit, finite = decomposed(X, bound)
    over = (s - limit).clamp(min=0)
    outside = s > limit * (1 + ROUNDING * torch.finfo(X.dtype).eps)
    either = outside.unsqueeze(-1) | outside.unsqueeze(-2)
    both = outside.unsqueeze(-1) & outside.unsqueeze(-2)
    distance = (s.unsqueeze(-1) - s.unsqueeze(-2)).abs()
    largest_over = torch.maximum(over.unsqueeze(-1), over.unsqueeze(-2))
    symmetric = torch.where(both, 1, torch.where(either, largest_over, 0) / _nonzero(distance))
    skew = (over.unsqueeze(-1) + over.unsqueeze(-2)) / _nonzero(s.unsqueeze(-1) + s.unsqueeze(-2))
    VV = V @ Vh.mT
    M = U.mT @ VV
    lost = U @ (symmetric * (M + M.mT) + skew * (M - M.mT)) / 2
    if X.shape[-2] > X.shape[-1]:
        lost = lost + (VV - U @ M) * (over / _nonzero(s)).unsqueeze(-2)
    result = torch.where(finite, V - lost @ Vh, torch.nan)
    return torch.where(same, V, result).contiguous()


def _same(X: Tensor, W: Tensor) -> Tensor:
    return (X == W).all(-1, keepdim=True).all(-2, keepdim=True)


def _nonzero(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 1)


# Derivation of the others. The symmetric matrix A = [[-b I, X], [X', -b I]] has the eigenvalues
# s - b, -s - b and -b. For S = sign(A), its polar factor, with blocks like those of A,
#
#     U min(s, b) V' = b S_12 - X S_22:
#
# a singular value above the bound contributes u v' to S_12 and nothing to S_22, one below it
# nothing to S_12 and -v v' to S_22. The polar factor has derivatives of every order, so this has.


def derivative(X: Tensor, W: Tensor, V: Tensor, bound: float) -> Tensor:
    """The derivative of the clipped matrix W of a tall X in direction V; differentiable."""
    same = _same(X, W)
    Y = torch.where(same, 0, X / bound)
    n = X.shape[-2]
    A, dA = _dilation(Y), _dilation(V)
    A = A - torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    S = polar.polar(A)
    dS = polar.derivative(A, S, dA)
    result = dS[..., :n, n:] - V @ S[..., n:, n:] - Y @ dS[..., n:, n:]
    return torch.where(same, V, result)


def _dilation(X: Tensor) -> Tensor:
    """``[[0, X], [X', 0]]``."""
    n, p = X.shape[-2:]
    top = torch.cat((X.new_zeros(*X.shape[:-2], n, n), X), dim=-1)
    return torch.cat((top, torch.cat((X.mT, X.new_zeros(*X.shape[:-2], p, p)), dim=-1)), dim=-2)


class _Clip(DirectFunction):
    @staticmethod
    def forward(X: Tensor, bound: float) -> Tensor:
        return _clip(X, bound) if has_numbers(X) else _clip_op(X, bound)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        X, ctx.bound = inputs
        ctx.save_for_backward(X, output)
        ctx.save_for_forward(X, output)

    @staticmethod
    def backward(ctx: Any, G: Tensor) -> tuple[Tensor, None]:
        X, W = ctx.saved_tensors
        plain = not torch.is_grad_enabled() and has_numbers(X) and has_numbers(G)
        with autocast_disabled(G):
            if plain:
                return _gradient(X, W, G, ctx.bound), None
            return derivative(X, W, G, ctx.bound), None

    @staticmethod
    @nestable
    def jvp(ctx: Any, saved: Any, dX: Tensor, *_: None) -> Tensor:
        X, W = saved
        return derivative(X, W, dX, ctx.bound)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int, None], X: Tensor, bound: float) -> tuple[Tensor, int]:
        return _Clip.apply(X.movedim(in_dims[0], 0), bound), 0


# ------------------------------------------------------------------------------ without numbers

# As in `constraints.polar`.

_clip_op = torch.library.custom_op(
    "constraints::clip_singular_values", untraced(_clip), mutates_args=()
)


@torch.library.custom_op("constraints::clip_singular_values_gradient", mutates_args=())
@untraced
def _gradient_op(X: Tensor, W: Tensor, V: Tensor, bound: float) -> Tensor:
    with autocast_disabled(V):
        return _gradient(X, W, V, bound)


@_clip_op.register_fake
@_gradient_op.register_fake
def _like(X: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(X, memory_format=torch.contiguous_format)


def _save(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
    X, ctx.bound = inputs
    ctx.save_for_backward(X, output)


def _backward(ctx: Any, G: Tensor) -> tuple[Tensor, None]:
    X, W = ctx.saved_tensors
    return _gradient_op(X, W, G, ctx.bound), None


_clip_op.register_autograd(_backward, setup_context=_save)


@_clip_op.register_vmap
def _(info: Any, in_dims: tuple[int, None], X: Tensor, bound: float) -> tuple[Tensor, int]:
    return _clip_op(X.movedim(in_dims[0], 0), bound), 0


@_gradient_op.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
    *tensors, bound = inputs
    return _gradient_op(*in_front(info, in_dims[:-1], tuple(tensors)), bound), 0
