"""The polar factor of a complex matrix, in real numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from constrained.constraint.precision import autocast_disabled
from constraints.math.autograd import goes_by_operator, in_front, untraced
from constraints.math.polar import derivative, polar


def polar_of_parts(real: Tensor, imaginary: Tensor) -> tuple[Tensor, Tensor]:
    """The real and the imaginary part of the polar factor of ``real + i imaginary``.

    A compiler that knows no complex numbers sees one operator with real ones.

    Args:
        real: shape ``(*batch, n, n)``.
        imaginary: the same.
    """
    if goes_by_operator():
        real, imaginary = _factor_op(torch.stack((real, imaginary), dim=-3)).unbind(-3)
        return real, imaginary
    factor = polar(torch.complex(real, imaginary))
    return factor.real, factor.imag


def _complex(X: Tensor) -> Tensor:
    return torch.complex(*X.unbind(-3))


def _parts(X: Tensor) -> Tensor:
    return torch.stack((X.real, X.imag), dim=-3)


# As in `constraints.polar`.


@torch.library.custom_op("constraints::complex_polar_factor", mutates_args=())
@untraced
def _factor_op(X: Tensor) -> Tensor:
    return _parts(polar(_complex(X)))


@torch.library.custom_op("constraints::complex_polar_gradient", mutates_args=())
@untraced
def _gradient_op(X: Tensor, W: Tensor, V: Tensor) -> Tensor:
    with autocast_disabled(V):
        return _parts(derivative(_complex(X), _complex(W), _complex(V)))


@_factor_op.register_fake
@_gradient_op.register_fake
def _like(X: Tensor, *_: Tensor) -> Tensor:
    return torch.empty_like(X, memory_format=torch.contiguous_format)


def _save(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs, output)


def _backward(ctx: Any, G: Tensor) -> Tensor:
    return _gradient_op(*ctx.saved_tensors, G)


_factor_op.register_autograd(_backward, setup_context=_save)


@_factor_op.register_vmap
def _(info: Any, in_dims: tuple[int], X: Tensor) -> tuple[Tensor, int]:
    return _factor_op(X.movedim(in_dims[0], 0)), 0


@_gradient_op.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor) -> tuple[Tensor, int]:
    return _gradient_op(*in_front(info, in_dims, inputs)), 0
