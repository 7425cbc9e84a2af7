"""A matrix plus and minus its transpose.

Both are read across rows once, by a copy, and not while adding, which takes torch five times
longer for a large matrix. Without derivatives.
"""

from __future__ import annotations

import torch
from torch import Tensor


def plus_transpose(P: Tensor) -> Tensor:
    """``P + P'``, exactly Hermitian; of shape ``(*batch, n, n)``."""
    return _transposed(P).add_(P)


def minus_transpose(P: Tensor) -> Tensor:
    """``P - P'``, exactly skew; of shape ``(*batch, n, n)``."""
    return _transposed(P).neg_().add_(P)


def _transposed(P: Tensor) -> Tensor:
    return P.mH.resolve_conj().clone(memory_format=torch.contiguous_format)
