"""Lyapunov equations of stable matrices, and right inverses that are computed from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from constrained.torch_internals import linalg
from constraints.math.eigenvalues import eigenvectors
from constraints.math.matrix import all_finite, eye_like, symmetric_part
from constraints.math.norm import norm

#: The largest number of doublings: more than the binary digits of a double.
DOUBLINGS = 64


def discrete_gramian(A: Tensor, B: Tensor | None = None) -> Tensor:
    r"""A lower triangular L with P = L L' and ``P - A P A' = B B'``.

    P is the sum of $A^k B B^\top A^{\top k}$ over k. Each round doubles the number of terms;
    it takes about $\log_2(1 / (1 - \rho))$ rounds for the spectral radius $\rho$.
    Terms are added by a QR decomposition of factors, not of P itself: the condition number of P is
    the square of that of L, so that L loses half as many digits.

    Args:
        A: shape ``(*batch, n, n)``, with a spectral radius below 1.
        B: shape ``(*batch, n, n)``, invertible; the identity by default.

    Returns:
        Tensor of shape ``(*batch, n, n)``.

    Reference:
        Smith, Matrix equation XA + BX = C (SIAM Journal on Applied Mathematics 16, 1968), for the
        doubling; Hammarling, Numerical solution of the stable, non-negative definite Lyapunov
        equation (IMA Journal of Numerical Analysis 2, 1982), for the factor.
    """
    L = eye_like(A).expand_as(A) if B is None else B
    power = A
    for _ in range(DOUBLINGS):
        more = power @ L
        small = linalg.matrix_norm(more) <= torch.finfo(A.dtype).eps * _least(L)
        L = linalg.qr(torch.cat([L, more], dim=-1).mT, mode="r").R.mT
        if bool(small.all()):
            break
        power = power @ power
    return L


def _least(L: Tensor) -> Tensor:
    """The norm of the shortest row, since further terms must be small relative to each row."""
    return linalg.vector_norm(L, dim=-1).amin(-1)


def continuous_gramian(A: Tensor) -> Tensor:
    r"""A lower triangular L with P = L L' and ``A P + P A' = -I``.

    With the Cayley transform $C = (p I - A)^{-1} (p I + A)$, for any p > 0, the same P solves
    $P - C P C^\top = 2 p \, (p I - A)^{-1} (p I - A)^{-\top}$.

    Args:
        A: shape ``(*batch, n, n)``, with eigenvalues of negative real part.

    Returns:
        Tensor of shape ``(*batch, n, n)``.
    """
    identity = eye_like(A)
    # The geometric mean of estimates of the largest and the smallest modulus of an eigenvalue, so
    # that both are mapped equally far inside the unit disk.
    reciprocal = norm(linalg.inv_ex(A)[0])
    p = (norm(A) / reciprocal).sqrt()
    p = torch.where(torch.isfinite(p) & (p > 0), p, 1)
    inverse = linalg.inv_ex(p * identity - A)[0]
    return discrete_gramian(inverse @ (p * identity + A), (2 * p).sqrt() * inverse)


def coordinates(L: Tensor, A: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """L scaled and rounded to a dtype, and ``L^-1 A L``; I and A where L is not usable.

    Args:
        L: shape ``(*batch, n, n)``, lower triangular.
        A: shape ``(*batch, n, n)``.
        dtype: that of the first result.
    """
    T = (L / L.abs().amax((-2, -1), keepdim=True)).to(dtype)
    changed = change(A, T.to(A.dtype))
    fits = all_finite(T)
    # In suitable coordinates A is nearer to a normal matrix, so its norm is not much larger.
    norms = (norm(x) for x in (changed, 10 * A))
    fits = fits & torch.less_equal(*norms)
    return torch.where(fits, T, eye_like(T)).contiguous(), torch.where(fits, changed, A)


def change_back(K: Tensor, T: Tensor) -> Tensor:
    """``T K T^-1`` for a lower triangular T."""
    return linalg.solve_triangular(T, T @ K, upper=False, left=False)


def change(A: Tensor, T: Tensor) -> Tensor:
    """``T^-1 A T`` for a lower triangular T."""
    return linalg.solve_triangular(T, A @ T, upper=False)


def square_root(Q: Tensor, least: Tensor) -> Tensor:
    """The symmetric square root of a symmetric matrix, with eigenvalues raised to ``least``."""
    values, vectors = linalg.eigh(symmetric_part(Q))
    root = torch.maximum(values, least).sqrt().unsqueeze(-2)
    return vectors * root @ vectors.mT


def modal(A: Tensor) -> Tensor:
    """A lower triangular L with L L' = V V*, where the columns of V are the eigenvectors of A.

    In the coordinates of L, A is a normal matrix, if it is diagonalizable.
    """
    V = eigenvectors(A)[1]
    return linalg.qr(torch.cat([V.real, V.imag], dim=-1).mT, mode="r").R.mT


def margins(dtype: torch.dtype) -> Iterator[float]:
    """Relative distances by which a matrix near the boundary is moved inwards, to be tried in turn.

    The first one is for the interior. 0 stands for the coordinates of the eigenvectors, in which
    the matrix need not be moved. For a defective eigenvalue of order k these do not exist, and the
    k-th root of eps is best. It balances the distance and the rounding errors in the coordinates,
    whose condition number is the reciprocal of the distance to the power k - 1. Infinity stands for
    the original coordinates.
    """
    eps = torch.finfo(dtype).eps
    yield from (eps ** (2 / 3), 0.0, eps ** (1 / 2), eps ** (1 / 3), eps ** (1 / 4), eps ** (1 / 6))
    yield math.inf


def fading(X: Tensor) -> Tensor:
    """1 at X = I, with a derivative of 0; 0 where the columns of X have moved by 1/4 or more.

    It multiplies the remainder in a right inverse, which is only correct for the first matrix.
    """
    moved = (X - eye_like(X)).square().sum((-2, -1), keepdim=True) / X.shape[-1]
    return F.relu(1 - 16 * moved) ** 4


def cost(params: tuple[Tensor, ...], value: Tensor) -> Tensor:
    """How far values near a right inverse ``(..., T, R)`` may lie outside, relative to ``value``.

    It is the sum of the remainder R and of the rounding errors in the coordinates T.
    """
    *_, T, R = params
    inverse = linalg.solve_triangular(T, eye_like(T).expand_as(T), upper=False)
    condition = linalg.matrix_norm(T) * linalg.matrix_norm(inverse) / T.shape[-1]
    size, missed = norm(value)[..., 0, 0], norm(R)[..., 0, 0]
    missed = missed / torch.where(size > 0, size, 1)
    return (missed + torch.finfo(value.dtype).eps * condition).nan_to_num(nan=torch.inf)


def cheapest(factors: Callable[[float], tuple[Tensor, ...]], value: Tensor) -> tuple[Tensor, ...]:
    """For each element the first right inverse of a `cost` up to 32 eps, else the cheapest.

    Args:
        factors: all of its tensors but the first, the identity, for one of `margins`.
        value: the matrices.
    """
    identity, enough = eye_like(value).expand_as(value), 32 * torch.finfo(value.dtype).eps
    best: tuple[Tensor, ...] = ()
    least = value.new_zeros(())
    for margin in margins(value.dtype):
        params = (identity, *factors(margin))
        new = cost(params, value)
        if best:
            # Keep what is good enough: the result for an element must not depend on the others.
            better = (least > enough) & (new < least)
            params = tuple(
                torch.where(better[..., None, None], a, b)
                for a, b in zip(params, best, strict=True)
            )
            new = torch.where(better, new, least)
        best, least = params, new
        if bool((least <= enough).all()):
            break
    # LAPACK returns column-major tensors, which some optimizers cannot work on.
    return tuple(param.contiguous() for param in best)
