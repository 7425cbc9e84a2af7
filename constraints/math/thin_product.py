"""Products of thin factors whose computed rank is right even where columns cancel."""

from __future__ import annotations

import torch
from torch import Tensor


def thin_product(A: Tensor, B: Tensor, P: Tensor, Q: Tensor) -> Tensor:
    """``A B'``, computed as ``P (P' A B' Q) Q'``.

    Where columns cancel, A B' is small relative to A and B, and its rounding errors would make
    singular values that are not small relative to the product: its rank would appear too high. The
    errors of the product on the right are relative to its own size. The derivative is that of
    ``A B'``, where this does not occur.

    Args:
        A: shape ``(*batch, m, r)``.
        B: shape ``(*batch, n, r)``.
        P: an orthonormal basis of the columns of A, of its shape; a constant for autograd.
        Q: the same for B.

    Returns:
        Tensor of shape ``(*batch, m, n)``.
    """
    product = A @ B.mT
    with torch.no_grad():
        exact = P @ ((P.mT @ A) @ (B.mT @ Q)) @ Q.mT
    return product + (exact - product).detach()
