"""The polar factor of a complex matrix, in real numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from constraints.math.autograd import differentiable, goes_by_operator
from constraints.math.polar import derivative, polar


def polar_of_parts(real: Tensor, imaginary: Tensor) -> tuple[Tensor, Tensor]:
    """The real and the imaginary part of the polar factor of ``real + i imaginary``.

    Compilers that do not support complex numbers see one operator on real numbers.

    Args:
        real: shape ``(*batch, n, n)``.
        imaginary: the same.
    """
    if goes_by_operator():
        real, imaginary = _polar_of_parts(torch.stack((real, imaginary), dim=-3)).unbind(-3)
        return real, imaginary
    factor = polar(torch.complex(real, imaginary))
    return factor.real, factor.imag


def _complex(X: Tensor) -> Tensor:
    return torch.complex(*X.unbind(-3))


def _parts(X: Tensor) -> Tensor:
    return torch.stack((X.real, X.imag), dim=-3)


def _factor(X: Tensor) -> Tensor:
    return _parts(polar(_complex(X)))


def _gradient(X: Tensor, W: Tensor, V: Tensor) -> Tensor:
    return _parts(derivative(_complex(X), _complex(W), _complex(V)))


_polar_of_parts = differentiable(
    "constraints::complex_polar_factor",
    _factor,
    "constraints::complex_polar_gradient",
    _gradient,
    _gradient,
)
