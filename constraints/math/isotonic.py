"""Isotonic regression: the nearest vector whose entries do not decrease."""

from __future__ import annotations

import torch
from torch import Tensor

from constraints.math.autograd import without_derivative


def isotonic(y: Tensor, scale: Tensor | None = None) -> Tensor:
    """The nearest vector whose entries do not decrease: the z of least ``sum (z_i - y_i)^2``.

    The solution is constant on blocks, with the mean of the block's entries as its value. If of two
    neighbouring blocks the first has the larger mean, they are part of one block of the solution.
    The order of merging does not matter. So in each round all such pairs, in all vectors, are
    merged at once, until none is left. A vector whose entries do not decrease is returned bit for
    bit.

    Args:
        y: shape ``(*batch, n)``.
        scale: positive weights of the squares, of the shape of ``y``; all alike by default. With
            them there is no derivative, and means are weighted.

    Reference:
        Best and Chakravarti, Active set algorithms for isotonic regression (Mathematical
        Programming 47, 1990), for the pooling of adjacent violators.
    """
    if scale is None:
        return _pooled(y)
    # In double precision, because the weights may differ by more than single precision holds.
    scale = scale.double()
    found = _isotonic(y.double(), scale / scale.amax(-1, keepdim=True)).to(y.dtype)
    return torch.where((y.diff(dim=-1) >= 0).all(-1, keepdim=True), y, found)


def _isotonic(y: Tensor, weight: Tensor | None = None) -> Tensor:
    weight = torch.ones_like(y) if weight is None else weight.contiguous()
    value, starts = y.clone(), torch.ones(y.shape, dtype=torch.bool, device=y.device)
    while True:
        # Within a block the value is constant, so falls occur at first entries of blocks only.
        falls = value[..., 1:] < value[..., :-1]
        if not bool(falls.any()):
            return value
        starts[..., 1:] &= ~falls
        block = starts.flatten().cumsum(0) - 1
        # Means of differences to the first entry, which are exact for equal numbers.
        first = y.flatten()[starts.flatten()]
        rest = y.flatten() - first[block]
        total = torch.zeros_like(first).index_add(0, block, rest * weight.flatten())
        count = torch.zeros_like(first).index_add(0, block, weight.flatten())
        value = (first + total / count)[block].reshape(y.shape)


_pooled = without_derivative("constraints::isotonic", _isotonic)
