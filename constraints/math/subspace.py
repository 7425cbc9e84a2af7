"""Subspaces of leading singular vectors, and how products with a matrix improve them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: The largest degree of a polynomial.
_DEGREE = 8


def polynomial(S: Tensor, wrong: float) -> tuple[float, int]:
    """Half of the squares below which nothing is wanted, and the degree that takes it away."""
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
    now = now / torch.linalg.vector_norm(now, dim=0).clamp(min=torch.finfo(X.dtype).tiny)
    return torch.linalg.qr(now).Q


def product(X: Tensor, basis: Tensor, left: bool) -> Tensor:
    """``X' basis`` for a basis of left vectors, else ``X basis``."""
    return X.mT @ basis if left else X @ basis


def orthonormal(image: Tensor) -> Tensor:
    """Orthonormal columns with the same span."""
    L, info = torch.linalg.cholesky_ex(image.mT @ image)
    d = L.diagonal()
    # They are orthonormal up to the square of this ratio.
    if int(info) == 0 and float(d.amin()) > 0.3 * float(d.amax()):
        return torch.linalg.solve_triangular(L, image.mT, upper=False).mT
    return torch.linalg.qr(image).Q
