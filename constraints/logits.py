"""Probabilities from logits, and back."""

from __future__ import annotations

import torch
from torch import Tensor


def probabilities(X: Tensor) -> Tensor:
    """Softmax over the last dimension, with a sum of 1 up to a few roundings."""
    share = torch.softmax(X, -1)
    # torch adds up one entry after the other: 10,000 of them miss the sum 1 by 20 eps.
    return share / share.sum(-1, keepdim=True).detach()


def logits(W: Tensor) -> Tensor:
    """``log(W)``, with eps / n for a zero, which is less than the rounding of a row.

    Not centred: the logarithm of a large entry is small, hence precise, and a mean that those of
    the small entries dominate would blur it.
    """
    finfo = torch.finfo(W.dtype)
    positive = torch.where(W > 0, W, finfo.eps / W.shape[-1])
    return torch.log(positive.clamp(min=finfo.tiny))
