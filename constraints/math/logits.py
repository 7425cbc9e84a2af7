"""Probabilities from logits, and back."""

from __future__ import annotations

import torch
from torch import Tensor


def probabilities(X: Tensor) -> Tensor:
    """Softmax over the last dimension, with a sum of 1 up to a few roundings."""
    share = torch.softmax(X, -1)
    # torch adds up one entry after the other: 10,000 of them miss the sum 1 by 20 eps.
    return share / share.sum(-1, keepdim=True).detach()


def inner(W: Tensor, share: float) -> Tensor:
    """Vectors of probabilities whose least entries, on average 1 / n, are ``share`` of that.

    Those without smaller entries come back bit for bit.
    """
    least = share / W.shape[-1]
    # The sum is at most 1 + 2 share, below 2.
    raised = W.clamp(min=2 * least)
    moved = raised / raised.sum(-1, keepdim=True)
    return torch.where((W < least).any(-1, keepdim=True), moved, W)


def logits(W: Tensor) -> Tensor:
    """``log(W)``, with eps / n for a zero, which is less than the rounding of a row.

    Not centred: the logarithm of a large entry is small, hence precise, and a mean that those of
    the small entries dominate would blur it.
    """
    finfo = torch.finfo(W.dtype)
    positive = torch.where(W > 0, W, finfo.eps / W.shape[-1])
    return torch.log(positive.clamp(min=finfo.tiny))
