"""Products of thin factors with the right computed rank, even if columns cancel."""

from __future__ import annotations

import torch
from torch import Tensor

from constraints.math.autograd import needs_derivative


def thin_product(A: Tensor, B: Tensor, P: Tensor, Q: Tensor) -> Tensor:
    """``A B'``, computed as ``P (P' A B' Q) Q'``.

    If columns cancel, A B' is small relative to A and B. Its rounding errors, which are relative to
    A and B, would then appear as further singular values, and its rank as too high. The errors of
    ``P (P' A B' Q) Q'`` are relative to its own size. The derivative is that of ``A B'``.

    Args:
        A: shape ``(*batch, m, r)``.
        B: shape ``(*batch, n, r)``.
        P: an orthonormal basis of the columns of A, of its shape; a constant for autograd.
        Q: the same for B.

    Returns:
        Tensor of shape ``(*batch, m, n)``.
    """
    with torch.no_grad():
        exact = (P @ ((P.mT @ A) @ (B.mT @ Q))) @ Q.mT
    if not (needs_derivative(A) or needs_derivative(B)):
        return exact
    product = A @ B.mT
    return product + (exact - product).detach()
