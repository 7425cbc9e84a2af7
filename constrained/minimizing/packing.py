"""Tensors of any dtypes as one vector of doubles, and back.

Each number of a tensor in half or single precision is a double as well. So a tensor that is packed
and unpacked has the same bits. Complex numbers are packed as pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: A vector of doubles, or a matrix of them.
Vector = NDArray[np.float64]


def size(tensor: Tensor) -> int:
    """How many doubles a tensor is packed into."""
    return tensor.numel() * (2 if tensor.is_complex() else 1)


def pack(tensors: Sequence[Tensor]) -> Vector:
    """The entries of tensors, one tensor after the other, in row-major order.

    Args:
        tensors: real or complex, on any devices.

    Returns:
        A new vector.
    """
    flat = [_real(t.detach()).reshape(-1).to("cpu", torch.float64) for t in tensors]
    return torch.cat([torch.empty(0, dtype=torch.float64), *flat]).numpy()


def unpack(vector: Vector, like: Sequence[Tensor]) -> list[Tensor]:
    """The tensors that `pack` would make the vector of, rounded to the dtypes of others.

    Args:
        vector: as `pack` makes it.
        like: tensors whose shapes, dtypes and devices the result has.
    """
    whole: Any = torch.tensor(vector, dtype=torch.float64)
    parts: list[Tensor] = whole.split([size(t) for t in like])
    return [_like(part, tensor) for part, tensor in zip(parts, like, strict=True)]


def _like(part: Tensor, tensor: Tensor) -> Tensor:
    if tensor.is_complex():
        return torch.view_as_complex(part.reshape(*tensor.shape, 2)).to(tensor.device, tensor.dtype)
    return part.reshape(tensor.shape).to(tensor.device, tensor.dtype)


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
