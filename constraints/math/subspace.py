"""Subspace iteration: how products with a matrix improve a basis of leading singular vectors.

Reference:
    Golub and Van Loan, Matrix Computations (4th ed., 2013), sections 7.3.1, 8.2.4 and 10.1.5, for
    subspace iteration, the Rayleigh-Ritz step and polynomial acceleration.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from constrained.torch_internals import linalg
from constraints.math.krylov_norm import generic
from constraints.math.singular_vectors import product

#: The largest degree of a polynomial.
_DEGREE = 8

#: A singular value that is below the bound by less than this share of it counts as near to it.
NEAR = 0.01

#: The squares of a matrix that exceeds the bound by more than this factor have too few digits.
FAR = 1.5

#: A value may rise by this many times what the residuals say. They hold for the vectors before the
#: last product. They also assume that the vectors are orthogonal to all others, which may be wrong
#: by a factor of up to two. Measured: at most 3.
_MISTRUST = 4.0


class Ritz(NamedTuple):
    """The singular values of a matrix on a basis, in ascending order and in units of the bound.

    Attributes:
        S: the singular values.
        Q: their vectors, in coordinates of the basis.
        wrong: by how much the largest of them may be too small.
        spare: how many are not near the bound.
    """

    S: Tensor
    Q: Tensor
    wrong: float
    spare: int


def ritz(squares: Tensor, within: Tensor, bound: float, floor: float) -> Ritz | None:
    """The Rayleigh-Ritz step, or None where the matrix is far outside, or not finite.

    Args:
        squares: the Gram matrix of the image of a basis.
        within: the explained part of the image, in an orthonormal basis; the rest is orthogonal.
        bound: the bound of the singular values.
        floor: singular values below this, in units of the bound, are known not to rise above it.
    """
    # NaN and infinity of a matrix are in all its images, and LAPACK stops at them.
    if not float(squares.diagonal().amax()) < (FAR * bound) ** 2:
        return None
    mu, Q = linalg.eigh(squares)
    S = mu.clamp(min=0).sqrt() / bound
    explained = within @ Q
    rest = (mu - explained.square().sum(0)) / bound**2
    may_rise = (_MISTRUST * rest > 1 - S.square()) & (S >= floor)
    explained = explained[:, may_rise]
    rest = (torch.diag(mu[may_rise]) - explained.mT @ explained) / bound**2
    wrong = _MISTRUST / 2 * float(linalg.matrix_norm(rest))
    return Ritz(S, Q, wrong, int((S < 1 - NEAR).sum()))


def polynomial(S: Tensor, wrong: float) -> tuple[float, int]:
    """The interval [0, half] of squares to be damped, and the degree that damps them enough."""
    half = max(float(S[0]), 0.5) ** 2 / 2
    growth = math.acosh(max(1 / half - 1, 1 + 1e-3))
    return half, min(max(1, math.ceil(math.acosh(2 * max(wrong, 1.0) ** 0.5) / growth)), _DEGREE)


def filtered(
    X: Tensor, basis: Tensor, half: float, degree: int, bound: float, left: bool
) -> Tensor:
    """A Chebyshev polynomial of ``X X'``, or of ``X' X``, applied to the basis."""
    unit = half * bound**2
    before, now = torch.zeros_like(basis), basis
    for k in range(degree):
        image = product(X, product(X, now, left), not left) / unit - now
        before, now = now, (image if k == 0 else 2 * image - before)
    now = now / linalg.vector_norm(now, dim=0).clamp(min=torch.finfo(X.dtype).tiny)
    return linalg.qr(now).Q


def orthonormal(image: Tensor) -> Tensor:
    """Orthonormal columns with the same span."""
    L, info = linalg.cholesky_ex(image.mT @ image)
    d = L.diagonal()
    # They are orthonormal up to the square of this ratio.
    if int(info) == 0 and float(d.amin()) > 0.3 * float(d.amax()):
        return linalg.solve_triangular(L, image.mT, upper=False).mT
    return linalg.qr(image).Q


def apart(spare: Tensor, top: Tensor) -> Tensor:
    """Orthonormal columns near given ones (generic ones for zeros), orthogonal to ``top``."""
    zero = ~spare.any(0)
    if bool(zero.any()):
        spare = torch.where(zero, generic(spare.mT).mT, spare)
    for _ in range(2):
        spare = linalg.qr(spare - top @ (top.mT @ spare)).Q
    return spare
