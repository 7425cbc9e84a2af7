"""Singular value decompositions that are tried in another way if LAPACK does not converge."""

from __future__ import annotations

import torch
from torch import Tensor

from constrained.torch_internals import linalg


def svd(X: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The thin decomposition ``X = U diag(s) Vh``.

    LAPACK's divide and conquer algorithm does not converge on some matrices with clustered singular
    values, which constraints produce; it was observed in single precision on a 256 x 256 matrix of
    norm 7. Then the transpose is decomposed in double precision, where it converged.

    Raises:
        torch.linalg.LinAlgError: if that does not converge either.
    """
    try:
        return linalg.svd(X, full_matrices=False)
    except linalg.LinAlgError:
        wide = torch.complex128 if X.is_complex() else torch.float64
        U, s, Vh = linalg.svd(X.mH.to(wide), full_matrices=False)
        return Vh.mH.to(X.dtype), s.to(X.real.dtype), U.mH.to(X.dtype)


def svdvals(X: Tensor) -> Tensor:
    """The singular values of X, in descending order; see `svd`."""
    try:
        return linalg.svdvals(X)
    except linalg.LinAlgError:
        wide = torch.complex128 if X.is_complex() else torch.float64
        return linalg.svdvals(X.mH.to(wide)).to(X.real.dtype)
