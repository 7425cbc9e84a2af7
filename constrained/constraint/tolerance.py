"""How far from a set a floating-point tensor may lie and still count as an element of it."""

from __future__ import annotations

import torch
from torch import Tensor

from constrained.torch_internals import linalg

#: Units in the last place that the storage of an element may err by, and its arithmetic.
STORAGE_ULPS = 4.0
ARITHMETIC_ULPS = 8.0


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a constraint on ``dtype`` tensors computes: at least single precision."""
    if dtype in (torch.bfloat16, torch.float16):
        return torch.float32
    return dtype


def tolerance(value: Tensor, event_dim: int | None) -> Tensor:
    r"""The one tolerance of the library, for each element of a batch.

    Two errors are unavoidable. Storing an element rounds every entry, by at most the unit roundoff
    of its dtype times the largest entry, whatever the size. Computing with it, in at least single
    precision, errs by a few units of the working precision times the norm of the element (the
    usual backward error bound, which holds the growth with size and magnitude):

    $4 \varepsilon_{\text{storage}} \max_i \lvert x_i \rvert
    + 8 \varepsilon_{\text{working}} \lVert x \rVert_2$

    and 4 units of the smallest number that the dtype can hold.

    Args:
        value: tensor of shape ``(*batch, *event)``, floating or complex.
        event_dim: number of trailing dimensions that make one element; None for all of them.

    Returns:
        Real tensor of shape ``batch``, in the working precision.
    """
    finfo = torch.finfo(value.dtype)
    storage = finfo.eps
    dtype = working_dtype(value.dtype)
    working = torch.finfo(dtype).eps
    magnitude = value.detach().to(dtype).abs()
    event_dim = value.ndim if event_dim is None else event_dim
    if event_dim:
        magnitude = magnitude.flatten(magnitude.ndim - event_dim)
        if magnitude.shape[-1] == 0:
            return magnitude.sum(-1)
        largest = magnitude.amax(-1)
        # In units of the largest entry, so that nothing overflows, and no square underflows.
        unit = torch.where(largest > 0, largest, torch.ones_like(largest))
        norm = linalg.vector_norm(magnitude / unit.unsqueeze(-1), dim=-1)
    else:
        largest, norm = magnitude, torch.ones_like(magnitude)
    # Among subnormal numbers rounding is absolute.
    subnormal = STORAGE_ULPS * finfo.smallest_normal * finfo.eps
    return STORAGE_ULPS * storage * largest + ARITHMETIC_ULPS * working * largest * norm + subnormal
