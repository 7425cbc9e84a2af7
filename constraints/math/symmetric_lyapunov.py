"""Linear equations with a symmetric positive matrix, and their derivatives of every order."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx

from constraints.math.autograd import in_front, nestable


def spectrum(H: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, at least 0, and eigenvectors of a positive H; constants for autograd.

    Args:
        H: shape ``(*batch, n, n)``, symmetric (Hermitian) and positive up to rounding.
    """
    H = H.detach()
    # LAPACK refuses NaN; what is NaN stays so by the right-hand side.
    finite = torch.isfinite(H).all(-1, keepdim=True).all(-2, keepdim=True)
    h, Q = torch.linalg.eigh(torch.where(finite, H, 0))
    return h.clamp(min=0), Q


def lyapunov(H: Tensor, C: Tensor, h: Tensor, Q: Tensor) -> Tensor:
    r"""The solution Y of ``H Y + Y H = C``.

    With ``H = Q diag(h) Q'`` the equation reads ``(h_i + h_j) (Q' Y Q)_ij = (Q' C Q)_ij``. Where
    both eigenvalues vanish, that entry of Y is 0: the solution of least norm, and finite always.

    Args:
        H: shape ``(*batch, n, n)``, symmetric (Hermitian) and positive.
        C: shape ``(*batch, n, n)``.
        h: the eigenvalues of H, from `spectrum`.
        Q: the eigenvectors of H, from `spectrum`.
    """
    return _Lyapunov.apply(H, C, h, Q)


def right_divide(M: Tensor, H: Tensor, h: Tensor, Q: Tensor) -> Tensor:
    """The solution Z of ``Z H = M``; like `lyapunov`, 0 in the directions where H vanishes.

    Args:
        M: shape ``(*batch, m, n)``.
        H: shape ``(*batch, n, n)``, symmetric (Hermitian) and positive.
        h: the eigenvalues of H, from `spectrum`.
        Q: the eigenvectors of H, from `spectrum`.
    """
    return _RightDivide.apply(M, H, h, Q)


def _reciprocal(x: Tensor, largest: Tensor) -> Tensor:
    """1 / x, and 0 where x is 0 up to the rounding of a sum of size ``largest``."""
    vanishes = x <= torch.finfo(x.dtype).eps * largest
    return torch.where(vanishes, 0, 1 / torch.where(vanishes, 1, x))


def _or_zero(tangent: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if tangent is None else tangent


# Derivation. Both solutions are linear in their right-hand side, through a self-adjoint operator:
# with L(Y) = H Y + Y H, a change of H and C gives
#
#     L(dY) = dC - dH Y - Y dH                     and  <G, dY> = <L^-1(G), dC - dH Y - Y dH>,
#
# hence the gradients Cbar = L^-1(G), Hbar = -(Cbar Y' + Y' Cbar). In the same way Z H = M gives
# dZ = (dM - Z dH) H^-1, Mbar = G H^-1, Hbar = -Z' Mbar. Solving with H is all that occurs on the
# right: the derivatives are expressed by the functions themselves, so they have derivatives too.
# h and Q say nothing that H does not say: they carry no gradient.


class _Lyapunov(Function):
    @staticmethod
    def forward(H: Tensor, C: Tensor, h: Tensor, Q: Tensor) -> Tensor:
        sums = h.unsqueeze(-1) + h.unsqueeze(-2)
        weights = _reciprocal(sums, h.amax(-1)[..., None, None])
        return Q @ (weights * (Q.mH @ C @ Q)) @ Q.mH

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Any, ...], output: Tensor) -> None:
        H, _, h, Q = inputs
        ctx.save_for_backward(H, h, Q, output)
        ctx.save_for_forward(H, h, Q, output)

    @staticmethod
    def backward(ctx: Any, G: Tensor) -> tuple[Tensor | None, ...]:
        H, h, Q, Y = ctx.saved_tensors
        C_bar = lyapunov(H, G, h, Q)
        H_bar = -(C_bar @ Y.mH + Y.mH @ C_bar)
        return H_bar, C_bar, None, None

    @staticmethod
    @nestable
    def jvp(
        ctx: Any, saved: tuple[Tensor, ...], dH: Tensor | None, dC: Tensor | None, *_: None
    ) -> Tensor:
        H, h, Q, Y = saved
        change = _or_zero(dC, Y)
        if dH is not None:
            change = change - dH @ Y - Y @ dH
        return lyapunov(H, change, h, Q)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor) -> tuple[Tensor, int]:
        return lyapunov(*in_front(info, in_dims, inputs)), 0


class _RightDivide(Function):
    @staticmethod
    def forward(M: Tensor, H: Tensor, h: Tensor, Q: Tensor) -> Tensor:
        return (M @ Q) * _reciprocal(h, h.amax(-1, keepdim=True)).unsqueeze(-2) @ Q.mH

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, H, h, Q = inputs
        ctx.save_for_backward(H, h, Q, output)
        ctx.save_for_forward(H, h, Q, output)

    @staticmethod
    def backward(ctx: Any, G: Tensor) -> tuple[Tensor | None, ...]:
        H, h, Q, Z = ctx.saved_tensors
        M_bar = right_divide(G, H, h, Q)
        return M_bar, -(Z.mH @ M_bar), None, None

    @staticmethod
    @nestable
    def jvp(
        ctx: Any, saved: tuple[Tensor, ...], dM: Tensor | None, dH: Tensor | None, *_: None
    ) -> Tensor:
        H, h, Q, Z = saved
        change = _or_zero(dM, Z)
        if dH is not None:
            change = change - Z @ dH
        return right_divide(change, H, h, Q)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor) -> tuple[Tensor, int]:
        return right_divide(*in_front(info, in_dims, inputs)), 0
