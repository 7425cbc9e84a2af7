"""The largest singular value of a matrix, found from directions that were right before."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from constraints.math.svd import svd

#: How many directions are followed: one that rises to the top is among them before it is there.
_FOLLOWED = 2


#: How many products of a matrix with the directions are worth more than a decomposition.
_LIMIT = 32


#: The share of generic directions in each start. Exactly right ones may stay so, in a diagonal
#: matrix, say, while another one overtakes them unseen.
_GENERIC = 1e-3


#: In units of ``eps ||X||_F``: how much the last product may add to the norm.
_ROUNDING = 4.0


#: How much faster than in the last product a direction below may rise, and not overtake.
_MISTRUST = 4.0


#: Within which share of the largest square the others count as equal to it, and how many products
#: of a matrix with the directions it takes at least to tell such apart.
_FLAT, _DEPTH = 2e-3, 8


def leading(X: Tensor, start: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    r"""The largest singular value of X, and the directions that X stretches most.

    A block Krylov method: after a step of an optimizer, a few products improve the directions that
    were right before it. They end when the last one added no more than rounding to the largest
    value, and too little to the others for these to overtake it, but not soon where the others are
    nearly equal to it. It is an estimate from below: a direction that no product has led to yet is
    seen a step later. After too many products it ends in a singular value decomposition.

    Args:
        X: shape ``(*batch, n, p)``, real, finite, single or double precision, not traced.
        start: shape ``(*batch, r, p)``, r at most min(n, p): any directions, of which good ones
            are worth time.
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
    squares, vectors = torch.linalg.eigh(images @ images.mT)
    for _ in range(_LIMIT - 1):
        if basis.shape[-2] + r > least:
            break
        # Orthonormal to all rows before them, also where the product leads to nothing new.
        new = _orthonormal(torch.cat((basis, images[..., -r:, :] @ X), -2))[..., -r:, :]
        basis = torch.cat((basis, new), -2)
        images = torch.cat((images, new @ X.mT), -2)
        before, (squares, vectors) = squares, torch.linalg.eigh(images @ images.mT)
        top, now = squares[..., -1:].clamp(min=0).sqrt(), squares[..., -r:]
        rise = now - before[..., -r:]
        rise[..., :-1] *= _MISTRUST
        settled = rise <= rounding * top + (squares[..., -1:] - now)
        # Among equal values, the direction of one that is a little larger has no name yet.
        alone = (now[..., :1] < (1 - _FLAT) * squares[..., -1:]) | (basis.shape[-2] >= _DEPTH * r)
        if bool((settled & alone).all()):
            return top.squeeze(-1), (vectors[..., -r:].mT @ basis).flip(-2)
    _, s, Vh = svd(X)
    return s[..., 0], Vh[..., :r, :].contiguous()


def generic_directions(X: Tensor) -> Tensor:
    """Starts for matrices of which nothing is known, the same at each call."""
    like = X[..., : min(_FOLLOWED, *X.shape[-2:]), :]
    return generic(like).expand_as(like)


def _orthonormal(rows: Tensor) -> Tensor:
    return torch.linalg.qr(rows.mT).Q.mT


def generic(like: Tensor) -> Tensor:
    """Directions without any pattern, of norm `_GENERIC` in each row of ``like``."""
    # Made where `like` lives, whatever the default device: no tensor is kept from one call, which
    # may be in inference mode or fake, to the next.
    return torch.as_tensor(_pattern(*like.shape[-2:]), dtype=like.dtype, device=like.device)


@functools.lru_cache(maxsize=64)
def _pattern(rows: int, size: int) -> np.ndarray:
    """Numbers without any pattern that a weight might share, of norm `_GENERIC` in each row."""
    i = np.arange(1, rows * size + 1, dtype=np.float64).reshape(rows, size)
    x = np.cos(0.7 * i * i)
    return _GENERIC * x / np.linalg.norm(x, axis=-1, keepdims=True)
