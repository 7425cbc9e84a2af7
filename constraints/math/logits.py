"""Probabilities from logits, and back."""

from __future__ import annotations

import torch
from torch import Tensor


def probabilities(X: Tensor) -> Tensor:
    """Softmax over the last dimension, with a sum of 1 up to a few roundings."""
    share = torch.softmax(X, -1)
    # torch adds up one entry after the other, so the sum of 10,000 of them misses 1 by 20 eps.
    return share / share.sum(-1, keepdim=True).detach()


def inner(W: Tensor, share: float) -> Tensor:
    """Vectors of n probabilities with all entries at least ``share / n``.

    Vectors without smaller entries are returned bit for bit.
    """
    least = share / W.shape[-1]
    # The sum is at most 1 + 2 share, below 2.
    raised = W.clamp(min=2 * least)
    moved = raised / raised.sum(-1, keepdim=True)
    return torch.where((W < least).any(-1, keepdim=True), moved, W)


def logits(W: Tensor) -> Tensor:
    """``log(W)``, with a zero replaced by eps / n, which is less than the rounding of a row.

    The logarithms are not centred. Those of large entries are small and thus precise; subtracting a
    mean, which the small entries dominate, would lose their digits.
    """
    finfo = torch.finfo(W.dtype)
    positive = torch.where(W > 0, W, finfo.eps / W.shape[-1])
    return torch.log(positive.clamp(min=finfo.tiny))
