"""The Frobenius norm, also of matrices whose squares leave the range of their dtype."""

from __future__ import annotations

import torch
from torch import Tensor

from constrained.torch_internals import linalg


def norm(M: Tensor) -> Tensor:
    """The Frobenius norm of each matrix; infinity only if the norm itself is out of range.

    Args:
        M: shape ``(*batch, m, n)``.

    Returns:
        Tensor of shape ``(*batch, 1, 1)``.
    """
    largest = M.detach().abs().amax((-2, -1), keepdim=True)
    unit = torch.where(largest > 0, largest, 1)
    return unit * linalg.matrix_norm(M / unit, keepdim=True)
