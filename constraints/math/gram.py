"""Products of a matrix with its own transpose."""

from __future__ import annotations

import torch
from torch import Tensor

#: From this number of columns on, the lower half of a product is copied from the upper one.
MIRRORED = 512


def gram(X: Tensor) -> Tensor:
    """``X' X`` without a derivative. For a large X it takes three quarters of a product's time.

    Args:
        X: shape ``(*batch, n, p)``.

    Returns:
        Tensor of shape ``(*batch, p, p)``.
    """
    p = X.shape[-1]
    if not is_mirrored(X):
        return X.mH @ X
    G = X.new_empty(p, p)
    _write(X, G)
    return G


def is_mirrored(X: Tensor) -> bool:
    """Whether the lower half of ``gram(X)`` is a copy, so that it is exactly Hermitian."""
    return X.ndim == 2 and X.shape[-1] >= MIRRORED


def _write(X: Tensor, out: Tensor) -> None:
    p = X.shape[-1]
    if p < MIRRORED // 2:
        torch.mm(X.mH, X, out=out)
        return
    half = p // 2
    left, right = X[:, :half], X[:, half:]
    _write(left, out[:half, :half])
    _write(right, out[half:, half:])
    torch.mm(left.mH, right, out=out[:half, half:])
    out[half:, :half] = out[:half, half:].mH
