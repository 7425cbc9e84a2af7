"""Projection onto the vectors whose sum is zero, with a weight for each entry."""

from __future__ import annotations

from torch import Tensor


def centred_by(x: Tensor, scale: Tensor) -> Tensor:
    """The vectors of sum zero that minimize ``sum_i scale_i (z_i - x_i)^2``.

    Args:
        x: shape ``(*batch, n)``.
        scale: positive, of the shape of ``x``.
    """
    wide, scale = x.double(), scale.double()
    # The multiplier is one number, and z_i differs from x_i by it, divided by scale_i.
    share = scale.amin(-1, keepdim=True) / scale
    share = share / share.sum(-1, keepdim=True)
    return (wide - share * wide.sum(-1, keepdim=True)).to(x.dtype)
