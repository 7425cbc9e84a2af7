"""Uniformly distributed orthonormal columns from Gaussian matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from constrained.torch_internals import linalg


def uniform_orthogonal(gaussian: Tensor) -> Tensor:
    """The Q of ``gaussian = Q R`` with a positive diagonal of R: uniform (Haar measure).

    Without that choice of signs the distribution would depend on LAPACK's algorithm. The columns
    are orthonormal up to the rounding errors of the decomposition.

    Args:
        gaussian: independent standard normal entries; shape ``(*batch, n, p)`` with n >= p.

    Reference:
        Mezzadri, How to generate random matrices from the classical compact groups (2007).
    """
    Q, R = linalg.qr(gaussian)
    signs = torch.where(R.diagonal(dim1=-2, dim2=-1) < 0, -1, 1)
    return Q * signs.unsqueeze(-2)
