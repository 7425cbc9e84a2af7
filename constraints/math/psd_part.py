"""The positive semidefinite part of a symmetric matrix, with derivatives of every order."""

from __future__ import annotations

import torch
from torch import Tensor

from constrained.torch_internals import linalg
from constraints.math.clip_singular_values import clip_singular_values
from constraints.math.matrix import distance_from_symmetric, eye_like, symmetric_part


def psd_part(S: Tensor) -> Tensor:
    """The nearest positive semidefinite matrix: negative eigenvalues are replaced by zero.

    A matrix without negative eigenvalues is returned bit for bit, and there the derivative is the
    identity, even where an eigenvalue is zero.

    With c at least the norm of S, the matrix Y = I - S / c has the singular values 1 - s / c for
    the eigenvalues s of S. Those above 1 belong to negative eigenvalues, and cutting them at 1
    changes Y by the negative part of S, in units of c. The error is of the size eps c, which may be
    large relative to a small result. So 8 eps c is added to the diagonal if anything was cut.

    Args:
        S: shape ``(*batch, n, n)``, symmetric, single or double precision.

    Example:
        >>> W = psd_part(torch.tensor([[2.0, 0.0], [0.0, -1.0]]))
        >>> torch.allclose(W, torch.tensor([[2.0, 0.0], [0.0, 0.0]]), atol=1e-5)
        True
    """
    # The largest absolute row sum, a bound of the norm that needs no squares, which may overflow.
    size = S.detach().abs().sum(-1, keepdim=True).amax(-2, keepdim=True)
    c = torch.where(size > 0, size, 1)
    identity = eye_like(S)
    Y = identity - S / c
    clipped = clip_singular_values(Y, 1.0)
    cut = (Y != clipped).any(-1, keepdim=True).any(-2, keepdim=True)
    enlarged = torch.where(cut, 8 * torch.finfo(S.dtype).eps * c, 0)
    return symmetric_part(S + c * (Y - clipped)) + enlarged * identity


def least_eigenvalue(value: Tensor) -> Tensor:
    """The least eigenvalue of the symmetric part."""
    return linalg.eigvalsh(symmetric_part(value))[..., 0]


def distance_from_psd(value: Tensor) -> Tensor:
    """The larger of two distances: from symmetry, and of the least eigenvalue from 0."""
    least = linalg.eigvalsh(symmetric_part(value))[..., 0]
    return torch.maximum(distance_from_symmetric(value), (-least).clamp(min=0))
