"""The softplus function with derivatives of every order, and its inverse."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def softplus(y: Tensor) -> Tensor:
    """``log(1 + exp(y))``, to a unit in the last place, from the real line onto (0, inf).

    It is computed as a log-sigmoid because the alternatives have defects: `F.softplus` is the
    identity above its threshold of 20, with an error of 2e-9 there, and the second derivative of
    `torch.logaddexp` is NaN from ``|y| = 100`` on in single precision.
    """
    return -F.logsigmoid(-y)


def least_softplus(share: float) -> float:
    """The value of softplus at which its derivative, ``1 - exp(-value)``, is a given number."""
    return -math.log1p(-share)


def inverse_softplus(x: Tensor) -> Tensor:
    """``log(exp(x) - 1)`` for ``x > 0``, without overflow at large x or lost digits at small x.

    ``log(exp(x) - 1) = log(exp(x) (1 - exp(-x))) = x + log(-expm1(-x))``.
    """
    return x + torch.log(-torch.expm1(-x))
