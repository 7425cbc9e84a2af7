"""Elementary operations on batches of square matrices."""

from __future__ import annotations

import torch
from torch import Tensor


def eye_like(like: Tensor) -> Tensor:
    """The identity matrix with as many columns, and of the dtype and device, of another one."""
    return torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)


def adjoint(X: Tensor) -> Tensor:
    """``X.mH`` with the conjugation carried out.

    In a compiled graph that needs no gradient, torch runs the bodies of operators without the
    dispatch key that gives effect to a lazy conjugation: sums with ``X.mH`` would be wrong, but not
    products of matrices (observed with torch 2.13).
    """
    return X.mH.resolve_conj() if X.is_complex() else X.mT


def all_finite(X: Tensor) -> Tensor:
    """Which matrices of a batch have no NaN or infinity among their entries.

    Args:
        X: shape ``(*batch, n, p)``.

    Returns:
        Tensor of truth values, of shape ``(*batch, 1, 1)``.
    """
    return torch.isfinite(X).all(-1, keepdim=True).all(-2, keepdim=True)


def symmetric_part(W: Tensor) -> Tensor:
    """``(W + W') / 2``."""
    return (W + W.mT) / 2


def distance_from_symmetric(W: Tensor) -> Tensor:
    """The largest entry of the skew part ``(W - W') / 2`` of each matrix, of shape ``batch``."""
    return ((W - W.mT) / 2).abs().amax((-2, -1))
