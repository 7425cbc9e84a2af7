"""Products of thin factors, of which the rank is no more than it says where columns cancel."""

from __future__ import annotations

import torch
from torch import Tensor


def thin_product(A: Tensor, B: Tensor, P: Tensor, Q: Tensor) -> Tensor:
    """``A B'``, computed as ``P (P' A B' Q) Q'``.

    Where columns cancel, A B' is small beside A and B, and what it errs by would raise its rank by
    more than what is rounding for a matrix of its size. The product on the right errs by as little
    as it is itself. The derivative is that of ``A B'``, which has no such trouble.

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
