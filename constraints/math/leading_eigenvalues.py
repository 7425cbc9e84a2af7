"""The largest eigenvalues of a symmetric matrix, and its distance from a bounded rank."""

from __future__ import annotations

import torch
from torch import Tensor

from constrained.torch_internals import linalg
from constraints.math.matrix import distance_from_symmetric, symmetric_part


def leading_eigenvalues(value: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The ``rank`` largest eigenvalues of the symmetric part, and their eigenvectors.

    Args:
        value: shape ``(*batch, n, n)``.
        rank: how many, up to n.

    Returns:
        Tensors of shapes ``(*batch, rank)``, in descending order, and ``(*batch, n, rank)``.
    """
    eigenvalues, Q = linalg.eigh(symmetric_part(value))
    return eigenvalues[..., -rank:].flip(-1), Q[..., -rank:].flip(-1).contiguous()


def distance_from_psd_rank(value: Tensor, rank: int) -> Tensor:
    """The largest of three: asymmetry, negative eigenvalues, positive ones beyond the ``rank``."""
    skew = distance_from_symmetric(value)
    eigenvalues = linalg.eigvalsh(symmetric_part(value))
    error = torch.maximum(skew, (-eigenvalues[..., 0]).clamp(min=0))
    if rank < eigenvalues.shape[-1]:
        error = torch.maximum(error, eigenvalues[..., -rank - 1].clamp(min=0))
    return error
