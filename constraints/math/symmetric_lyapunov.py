"""Linear equations with a symmetric positive matrix, and their derivatives of every order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function

from constrained.torch_internals import linalg
from constraints.math.autograd import in_front, nestable
from constraints.math.matrix import all_finite


def spectrum(H: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, at least 0, and eigenvectors of a positive H; constants for autograd.

    Args:
        H: shape ``(*batch, n, n)``, symmetric (Hermitian) and positive up to rounding.
    """
    H = H.detach()
    # LAPACK refuses NaN. Where H is NaN, so is the right-hand side, and thus the solution.
    finite = all_finite(H)
    h, Q = linalg.eigh(torch.where(finite, H, 0))
    return h.clamp(min=0), Q


def lyapunov(H: Tensor, C: Tensor, h: Tensor, Q: Tensor) -> Tensor:
    r"""The solution Y of ``H Y + Y H = C``.

    With ``H = Q diag(h) Q'`` the equation reads ``(h_i + h_j) (Q' Y Q)_ij = (Q' C Q)_ij``. Where
    both eigenvalues vanish, that entry of ``Q' Y Q`` is 0. So it is the solution of least norm, and
    always finite.

    Args:
        H: shape ``(*batch, n, n)``, symmetric (Hermitian) and positive.
        C: shape ``(*batch, n, n)``.
        h: the eigenvalues of H, from `spectrum`.
        Q: the eigenvectors of H, from `spectrum`.
    """
    return _lyapunov(H, C, h, Q)


def right_divide(M: Tensor, H: Tensor, h: Tensor, Q: Tensor) -> Tensor:
    """The solution Z of ``Z H = M``, which is 0 in the directions where H vanishes.

    Args:
        M: shape ``(*batch, m, n)``.
        H: shape ``(*batch, n, n)``, symmetric (Hermitian) and positive.
        h: the eigenvalues of H, from `spectrum`.
        Q: the eigenvectors of H, from `spectrum`.
    """
    return _right_divide(H, M, h, Q)


def _solve_lyapunov(C: Tensor, h: Tensor, Q: Tensor) -> Tensor:
    sums = h.unsqueeze(-1) + h.unsqueeze(-2)
    weights = _reciprocal(sums, h.amax(-1)[..., None, None])
    return Q @ (weights * (Q.mH @ C @ Q)) @ Q.mH


def _divide(M: Tensor, h: Tensor, Q: Tensor) -> Tensor:
    return (M @ Q) * _reciprocal(h, h.amax(-1, keepdim=True)).unsqueeze(-2) @ Q.mH


def _reciprocal(x: Tensor, largest: Tensor) -> Tensor:
    """1 / x, and 0 where x is 0 up to the rounding of a sum of size ``largest``."""
    vanishes = x <= torch.finfo(x.dtype).eps * largest
    return torch.where(vanishes, 0, 1 / torch.where(vanishes, 1, x))


# Derivation. Both equations read L_H(Y) = C, with L_H linear in H and a self-adjoint operator on Y.
# A change of H and C gives
#
#     L_H(dY) = dC - L_dH(Y)                  and      <G, dY> = <L_H^-1(G), dC - L_dH(Y)>.
#
# So the gradients are Cbar = L_H^-1(G) and Hbar = -A(Cbar), where A is the adjoint of
# dH -> L_dH(Y). For L_H(Y) = H Y + Y H it is A(Cbar) = Cbar Y' + Y' Cbar, for L_H(Z) = Z H it is
# Z' Cbar. The derivatives contain only solutions of the same equation, so they are differentiable
# too. h and Q are functions of H and carry no gradient of their own.


def _solver(
    solve: Callable[[Tensor, Tensor, Tensor], Tensor],
    product: Callable[[Tensor, Tensor], Tensor],
    adjoint: Callable[[Tensor, Tensor], Tensor],
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """The solution of ``L_H(Y) = C``, with derivatives of every order.

    Args:
        solve: the solution from C and the spectrum h, Q of H.
        product: ``L_dH(Y)`` from dH and Y.
        adjoint: the adjoint of ``dH -> L_dH(Y)``, from Cbar and Y.

    Returns:
        A function of H, C, h and Q.
    """

    class Solution(Function):
        @staticmethod
        def forward(H: Tensor, C: Tensor, h: Tensor, Q: Tensor) -> Tensor:
            del H
            return solve(C, h, Q)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            H, _, h, Q = inputs
            ctx.save_for_backward(H, h, Q, output)
            ctx.save_for_forward(H, h, Q, output)

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
            (G,) = gradients
            H, h, Q, Y = ctx.saved_tensors
            C_bar = solution(H, G, h, Q)
            return -adjoint(C_bar, Y), C_bar, None, None

        @staticmethod
        @nestable
        def jvp(
            ctx: Any, saved: tuple[Tensor, ...], dH: Tensor | None, dC: Tensor | None, *_: None
        ) -> Tensor:
            H, h, Q, Y = saved
            change = torch.zeros_like(Y) if dC is None else dC
            if dH is not None:
                change = change - product(dH, Y)
            return solution(H, change, h, Q)

        @staticmethod
        def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor) -> tuple[Tensor, int]:
            return solution(*in_front(info, in_dims, inputs)), 0

    solution = cast("Callable[..., Tensor]", Solution.apply)
    return solution


_lyapunov = _solver(
    _solve_lyapunov,
    product=lambda dH, Y: dH @ Y + Y @ dH,
    adjoint=lambda C_bar, Y: C_bar @ Y.mH + Y.mH @ C_bar,
)
_right_divide = _solver(
    _divide, product=lambda dH, Z: Z @ dH, adjoint=lambda M_bar, Z: Z.mH @ M_bar
)
