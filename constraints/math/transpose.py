"""A matrix plus and minus its transpose, without derivatives.

The transpose is copied first and then added in place: for a large matrix, torch takes five times
longer to add a transposed tensor.
"""

from __future__ import annotations

import torch
from torch import Tensor

from constraints.math.matrix import adjoint


def plus_transpose(P: Tensor) -> Tensor:
    """``P + P'``, exactly Hermitian; of shape ``(*batch, n, n)``."""
    return _transposed(P).add_(P)


def minus_transpose(P: Tensor) -> Tensor:
    """``P - P'``, exactly skew; of shape ``(*batch, n, n)``."""
    return _transposed(P).neg_().add_(P)


def _transposed(P: Tensor) -> Tensor:
    return adjoint(P).clone(memory_format=torch.contiguous_format)
