"""How far the columns or rows of a matrix are from being orthonormal."""

from __future__ import annotations

import torch
from torch import Tensor

from constraints.math.polar import defect


def orthonormality_error(W: Tensor) -> Tensor:
    """The largest entry of ``|W* W - I|``, or of ``|W W* - I|`` if W is wide.

    Args:
        W: shape ``(*batch, n, p)``, finite, real or complex.

    Returns:
        Real tensor of shape ``batch``; infinity where the product overflows.
    """
    tall = W if W.shape[-2] >= W.shape[-1] else W.mH
    # The entries of W are finite, so that a NaN is the difference of two overflows.
    excess = defect(tall, tall).abs().nan_to_num(nan=torch.inf, posinf=torch.inf)
    return excess.amax((-2, -1))
