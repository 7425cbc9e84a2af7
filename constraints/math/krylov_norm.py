"""The largest singular value of a matrix, iterated from the singular vectors before a step."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from constrained.torch_internals import linalg
from constraints.math.svd import svd

#: How many directions are followed: the top one, and the one most likely to overtake it.
_FOLLOWED = 2

#: From this number of products with the directions on, a decomposition is faster.
_LIMIT = 32

#: The share of generic directions in each start. Without it, the followed vectors may remain exact
#: singular vectors, as in a diagonal matrix, while another one overtakes them unseen.
_GENERIC = 1e-3

#: How much the last product may add to the norm, in units of ``eps ||X||_F``.
_ROUNDING = 4.0

#: A lower direction is assumed to rise by at most this many times its last rise.
_MISTRUST = 4.0

#: Squares within this share of the largest count as equal to it, and the least number of products
#: that is needed to tell such squares apart.
_FLAT, _DEPTH = 2e-3, 8


def leading(X: Tensor, start: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    r"""The largest singular value of X, and the directions that X stretches most.

    It is a block Krylov method: a few products improve the directions from before an optimizer's
    step. It stops when the last product added no more than rounding to the largest value, and too
    little to the others for these to overtake it. If the others are nearly equal to it, a minimum
    number of products is made. The result is an estimate from below: a direction that no product
    has reached yet is found at a later step. After too many products, a singular value
    decomposition is computed instead.

    Args:
        X: shape ``(*batch, n, p)``, real, finite, single or double precision, not traced.
        start: shape ``(*batch, r, p)``, r at most min(n, p): any directions; good ones save time.
        size: the Frobenius norms, of shape ``batch``.

    Returns:
        Norms of shape ``batch``, and orthonormal rows of shape ``(*batch, r, p)``, the most
        stretched one first.

    Reference:
        Golub and Van Loan, Matrix Computations (4th ed., 2013), section 10.3.6, for block Lanczos
        methods; Musco and Musco, Randomized block Krylov methods for stronger and faster
        approximate singular value decomposition (2015), for their convergence without gaps.
    """
    r, least = start.shape[-2], min(X.shape[-2:])
    rounding = 2 * _ROUNDING * torch.finfo(X.dtype).eps * size.unsqueeze(-1)
    basis = _orthonormal(start + generic(start))
    images = basis @ X.mT
    squares, vectors = linalg.eigh(images @ images.mT)
    for _ in range(_LIMIT - 1):
        if basis.shape[-2] + r > least:
            break
        # Orthogonal to all rows before them, even where the product is in their span.
        new = _orthonormal(torch.cat((basis, images[..., -r:, :] @ X), -2))[..., -r:, :]
        basis = torch.cat((basis, new), -2)
        images = torch.cat((images, new @ X.mT), -2)
        before, (squares, vectors) = squares, linalg.eigh(images @ images.mT)
        top, now = squares[..., -1:].clamp(min=0).sqrt(), squares[..., -r:]
        rise = now - before[..., -r:]
        rise[..., :-1] *= _MISTRUST
        converged = rise <= rounding * top + (squares[..., -1:] - now)
        # A few products do not tell which of several nearly equal values is the largest.
        alone = (now[..., :1] < (1 - _FLAT) * squares[..., -1:]) | (basis.shape[-2] >= _DEPTH * r)
        if bool((converged & alone).all()):
            return top.squeeze(-1), (vectors[..., -r:].mT @ basis).flip(-2)
    _, s, Vh = svd(X)
    return s[..., 0], Vh[..., :r, :].contiguous()


def generic_directions(X: Tensor) -> Tensor:
    """Directions to start from where none are known, the same at each call."""
    like = X[..., : min(_FOLLOWED, *X.shape[-2:]), :]
    return generic(like).expand_as(like)


def _orthonormal(rows: Tensor) -> Tensor:
    return linalg.qr(rows.mT).Q.mT


def generic(like: Tensor) -> Tensor:
    """Directions without any pattern, of the shape of ``like``, with rows of norm `_GENERIC`."""
    # A new tensor at each call: a cached one could be an inference tensor or a fake tensor.
    return torch.as_tensor(_pattern(*like.shape[-2:]), dtype=like.dtype, device=like.device)


@functools.lru_cache(maxsize=64)
def _pattern(rows: int, size: int) -> np.ndarray:
    """Numbers without any pattern that a weight might share, with rows of norm `_GENERIC`."""
    i = np.arange(1, rows * size + 1, dtype=np.float64).reshape(rows, size)
    x = np.cos(0.7 * i * i)
    return _GENERIC * x / np.linalg.norm(x, axis=-1, keepdims=True)
