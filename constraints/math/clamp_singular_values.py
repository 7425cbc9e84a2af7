"""The matrix whose singular values are moved between two bounds, with exact derivatives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from constrained.constraint.precision import autocast_disabled
from constraints.math import clip_singular_values as clip
from constraints.math import polar
from constraints.math.autograd import (
    DirectFunction,
    goes_by_operator,
    has_numbers,
    in_front,
    nestable,
    untraced,
)
from constraints.math.rounding import least_positive
from constraints.math.svd import svd, svdvals

#: How far beyond a bound a singular value may be and count as equal to it, in units of the machine
#: epsilon times the Frobenius norm: half of what the tolerance of the library grants.
ROUNDING = 4.0


#: From this ratio of the bounds on, the Gram matrix holds enough digits of the smaller one.
CLOSE = 0.25


def clamp_singular_values(X: Tensor, low: float, high: float) -> Tensor:
    r"""The matrix nearest to X among those with singular values between ``low`` and ``high``.

    It is ``U clamp(S, low, high) V'`` for ``X = U S V'``, the nearest in every unitarily invariant
    norm. A matrix that has no other singular values comes back bit for bit (as a copy), its
    derivative being the identity. At a bound the map has a kink; where singular values vanish it is
    not unique and not differentiable, and the derivatives are cut off. NaN and infinity in an
    element give NaN in that element.

    Args:
        X: shape ``(*batch, n, p)``, real, single or double precision.
        low: the least singular value, 0 or more.
        high: the largest one, greater than ``low``.

    Returns:
        Tensor of the same shape.

    Example:
        >>> clamp_singular_values(torch.tensor([[4.0, 0.0], [0.0, -0.25]]), 0.5, 1.0)
        tensor([[ 1.0000,  0.0000],
                [ 0.0000, -0.5000]])
    """
    if X.shape[-2] < X.shape[-1]:
        return clamp_singular_values(X.mT, low, high).mT.contiguous()
    if goes_by_operator():
        return _clamp_op(X, low, high)
    return _Clamp.apply(X, low, high)


# ------------------------------------------------------------------------------------ the value


def _clamp(X: Tensor, low: float, high: float) -> Tensor:
    """The clamped matrix of a tall X, by the cheapest way that its numbers allow."""
    unchanged = X.clone(memory_format=torch.contiguous_format)
    if X.numel() == 0 or (low >= CLOSE * high and bool(_certainly_inside(X, low, high).all())):
        return unchanged
    largest, Y, finite = _scaled(X, high)
    U, S, Vh = svd(Y)
    bounds = low / largest.squeeze(-1), high / largest.squeeze(-1)
    inside = finite & _inside(S, *bounds)[..., None, None]
    if bool(inside.all()):
        return unchanged
    W = X
    # What U and V lack to orthonormality is beyond the bounds: then they are drawn in by it.
    for k in range(8):
        margin = k * (k + 1) * torch.finfo(X.dtype).eps * bounds[1]
        W = largest * ((U * S.clamp(bounds[0] + margin, bounds[1] - margin).unsqueeze(-2)) @ Vh)
        W = torch.where(inside, X, torch.where(finite, W, torch.nan)).contiguous()
        if low >= CLOSE * high and bool(_certainly_inside(W, low, high).all()):
            break
        found = _inside(svdvals(W.nan_to_num()), low, high)[..., None, None]
        if bool((~finite | inside | found).all()):
            break
    return W


def _scaled(X: Tensor, high: float) -> tuple[Tensor, Tensor, Tensor]:
    """The largest entry c of each matrix, X / c, and whether X is finite.

    Beside ``high`` c is no smaller than what the bounds can be divided by.
    """
    largest = X.abs().amax(dim=(-2, -1), keepdim=True)
    finite = torch.isfinite(largest)
    unit = torch.where(finite, largest, 1).clamp(min=high * least_positive(X.dtype))
    return unit, torch.where(finite, X / unit, 0), finite


def _inside(S: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    """Where all singular values are between the bounds, up to rounding; of shape ``batch``."""
    rounding = (
        ROUNDING * torch.finfo(S.dtype).eps * torch.linalg.vector_norm(S, dim=-1, keepdim=True)
    )
    return ((S >= low - rounding) & (S <= high + rounding)).all(-1)


def _certainly_inside(X: Tensor, low: float, high: float) -> Tensor:
    """A sufficient condition, cheaper than singular values: two matrices are positive definite."""
    Y = X / high
    E = polar.defect(Y, Y)
    # Inside, the Frobenius norm is at least sqrt(p) low: this is less than `ROUNDING` times it.
    ratio = (low / high) ** 2
    rounding = 2 * ROUNDING * torch.finfo(X.dtype).eps * X.shape[-1] ** 0.5 * ratio
    ends = torch.stack((-E, E))
    ends.diagonal(dim1=-2, dim2=-1).add_(rounding)
    ends[1].diagonal(dim1=-2, dim2=-1).add_(1 - ratio)
    L, info = torch.linalg.cholesky_ex(ends)
    # Infinity and NaN are no reason for LAPACK to stop.
    return ((info == 0) & torch.isfinite(L.diagonal(dim1=-2, dim2=-1)).all(-1)).all(0)


# ------------------------------------------------------------------------------- its derivative

# Derivation. For X = U S V' and a = f(s), a change of X with M = U' dX V, split into its symmetric
# and its skew part, changes U a V' by
#
#     U (Gamma * sym M + Delta * skew M) V' + (I - U U') dX V (a / s) V',
#     Gamma_ij = (a_i - a_j) / (s_i - s_j),     Delta_ij = (a_i + a_j) / (s_i + s_j).
#
# Gamma is 1 for two singular values between the bounds and 0 for two beyond the same one. Any other
# two are on different sides of a bound: their difference is no small number by cancellation.


def _gradient(X: Tensor, W: Tensor, V: Tensor, low: float, high: float) -> Tensor:
    """The derivative of the clamped matrix W of a tall X in direction V; self-adjoint."""
    same = _same(X, W)
    if bool(same.all()):
        return V.clone(memory_format=torch.contiguous_format)
    largest, Y, finite = _scaled(X, high)
    U, s, Vh = svd(Y)
    below, above = low / largest.squeeze(-1), high / largest.squeeze(-1)
    a = torch.where(s < below, below, torch.where(s > above, above, s))
    side = (s > above).to(s.dtype) - (s < below).to(s.dtype)
    alike = side.unsqueeze(-1) == side.unsqueeze(-2)
    slopes = (a.unsqueeze(-1) - a.unsqueeze(-2)) / _or_one(s.unsqueeze(-1) - s.unsqueeze(-2))
    gamma = torch.where(alike, (side == 0).to(s.dtype).unsqueeze(-1), slopes)
    sums = s.unsqueeze(-1) + s.unsqueeze(-2)
    delta = _or_none(a.unsqueeze(-1) + a.unsqueeze(-2), sums, s)
    VV = V @ Vh.mT
    M = U.mT @ VV
    change = U @ (gamma * (M + M.mT) + delta * (M - M.mT)) / 2
    if X.shape[-2] > X.shape[-1]:
        change = change + (VV - U @ M) * _or_none(a, s, s).unsqueeze(-2)
    result = torch.where(finite, change @ Vh, torch.nan)
    return torch.where(same, V, result).contiguous()


def _same(X: Tensor, W: Tensor) -> Tensor:
    return (X == W).all(-1, keepdim=True).all(-2, keepdim=True)


def _or_none(a: Tensor, sums: Tensor, s: Tensor) -> Tensor:
    """A / sums, and 0 where singular values vanish, so that there is no derivative."""
    finfo = torch.finfo(s.dtype)
    largest = s.amax(-1).reshape(*s.shape[:-1], *[1] * (sums.ndim - s.ndim + 1))
    ratio = a / _or_one(sums)
    return torch.where((sums > finfo.eps * largest) & (ratio < finfo.tiny**-0.5), ratio, 0)


def _or_one(x: Tensor) -> Tensor:
    return torch.where(x == 0, 1, x)


# Derivation of the others. With clip(X, c) = U min(S, c) V' and the polar factor P = U V',
#
#     U clamp(S, low, high) V' = clip(X, high) - clip(X, low) + low P,
#
# and each of these has derivatives of every order.


def derivative(X: Tensor, W: Tensor, V: Tensor, low: float, high: float) -> Tensor:
    """The derivative of the clamped matrix W of a tall X in direction V; differentiable."""
    same = _same(X, W)
    result = clip.derivative(X, clip.clip_singular_values(X, high), V, high)
    if low > 0:
        result = result - clip.derivative(X, clip.clip_singular_values(X, low), V, low)
        result = result + low * polar.derivative(X, polar.polar(X), V)
    return torch.where(same, V, result)


class _Clamp(DirectFunction):
    @staticmethod
    def forward(X: Tensor, low: float, high: float) -> Tensor:
        return _clamp(X, low, high) if has_numbers(X) else _clamp_op(X, low, high)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float, float], output: Tensor) -> None:
        X, *ctx.bounds = inputs
        ctx.save_for_backward(X, output)
        ctx.save_for_forward(X, output)

    @staticmethod
    def backward(ctx: Any, G: Tensor) -> tuple[Tensor, None, None]:
        X, W = ctx.saved_tensors
        plain = not torch.is_grad_enabled() and has_numbers(X) and has_numbers(G)
        with autocast_disabled(G):
            return (_gradient if plain else derivative)(X, W, G, *ctx.bounds), None, None

    @staticmethod
    @nestable
    def jvp(ctx: Any, saved: Any, dX: Tensor, *_: None) -> Tensor:
        X, W = saved
        return derivative(X, W, dX, *ctx.bounds)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int, None, None], X: Tensor, low: float, high: float
    ) -> tuple[Tensor, int]:
        return _Clamp.apply(X.movedim(in_dims[0], 0), low, high), 0


# ------------------------------------------------------------------------------ without numbers

# As in `constraints.polar`.

_clamp_op = torch.library.custom_op(
    "constraints::clamp_singular_values", untraced(_clamp), mutates_args=()
)


@torch.library.custom_op("constraints::clamp_singular_values_gradient", mutates_args=())
@untraced
def _gradient_op(X: Tensor, W: Tensor, V: Tensor, low: float, high: float) -> Tensor:
    with autocast_disabled(V):
        return _gradient(X, W, V, low, high)


@_clamp_op.register_fake
@_gradient_op.register_fake
def _like(X: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(X, memory_format=torch.contiguous_format)


def _save(ctx: Any, inputs: tuple[Tensor, float, float], output: Tensor) -> None:
    X, *ctx.bounds = inputs
    ctx.save_for_backward(X, output)


def _backward(ctx: Any, G: Tensor) -> tuple[Tensor, None, None]:
    X, W = ctx.saved_tensors
    return _gradient_op(X, W, G, *ctx.bounds), None, None


_clamp_op.register_autograd(_backward, setup_context=_save)


@_clamp_op.register_vmap
def _(info: Any, in_dims: tuple[Any, ...], X: Tensor, *bounds: float) -> tuple[Tensor, int]:
    return _clamp_op(X.movedim(in_dims[0], 0), *bounds), 0


@_gradient_op.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
    *tensors, low, high = inputs
    return _gradient_op(*in_front(info, in_dims[:-2], tuple(tensors)), low, high), 0
