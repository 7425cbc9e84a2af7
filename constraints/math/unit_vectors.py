"""Vectors scaled to a given length, at every magnitude."""

from __future__ import annotations

import torch
from torch import Tensor

from constrained.torch_internals import linalg
from constraints.math.autograd import needs_derivative

#: The error of the length of a scaled vector, in units of the machine epsilon.
ROUNDING = 8.0


def normalized(y: Tensor, radius: float) -> Tensor:
    """``radius y / ||y||`` along the last dimension.

    For y = 0 it is ``radius`` times the first unit vector. A vector that has this length up to
    rounding is returned bit for bit.
    """
    if not needs_derivative(y):
        norm = _length(y)
        if is_moderate(norm):
            factor = radius / norm
            return y * torch.where(_is_rounding(factor), 1, factor)
    direction, _ = scaled(y)
    return radius * direction / linalg.vector_norm(direction, dim=-1, keepdim=True)


def normalized_gradient(y: Tensor, value: Tensor, gradient: Tensor, radius: float) -> Tensor:
    """The gradient with respect to y from that with respect to ``normalized(y, radius)``.

    It is the part orthogonal to y, scaled; it is not differentiable.
    """
    norm = _length(y)
    if not (y.is_cpu and is_moderate(norm)):
        y = y.detach().requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad(normalized(y, radius), y, gradient)[0]
    # Each pass over memory takes time. So the result reuses the memory of the products, and the
    # factor is skipped for a parameter that was put back onto the sphere.
    products = gradient * value
    along = products.sum(-1, keepdim=True)
    across = torch.addcmul(gradient, value, along, value=-1 / radius**2, out=products)
    factor = radius / norm
    return across if _is_rounding(factor).all() else across.mul_(factor)


def steepest_on_sphere(value: Tensor, gradient: Tensor, radius: float) -> Tensor:
    """``-radius t / ||t||`` with the tangent part t of the gradient at a vector of a sphere.

    Args:
        value: vectors of this length along the last dimension, shape ``(*batch, n)``.
        gradient: finite, of the same shape.
        radius: the length.

    Returns:
        Tensor of the same shape, zero where the tangent part is of the size of rounding errors.

    Raises:
        ValueError: if the gradient holds NaN or infinity.
    """
    unit = value / radius
    gradient, scale = scaled(gradient)
    if not bool(torch.isfinite(scale).all()):
        raise ValueError("The gradient holds NaN or infinity; the steepest direction needs finite.")
    tangent = gradient - unit * (unit * gradient).sum(-1, keepdim=True)
    # Once more, for a gradient whose tangent part is small: its part along the vector is rounding.
    tangent = tangent - unit * (unit * tangent).sum(-1, keepdim=True)
    norm = linalg.vector_norm(tangent, dim=-1, keepdim=True)
    least = ROUNDING * torch.finfo(value.dtype).eps
    least = least * linalg.vector_norm(gradient, dim=-1, keepdim=True)
    return tangent * torch.where((norm > least) & (scale > 0), -radius / norm, 0)


def _is_rounding(factor: Tensor) -> Tensor:
    """Where a factor differs from 1 by no more than the error of a scaled vector's length."""
    return (factor - 1).abs() <= ROUNDING * torch.finfo(factor.dtype).eps


def _length(y: Tensor) -> Tensor:
    """The norms along the last dimension, which is kept."""
    if y.stride(-1) == 1:
        return linalg.vector_norm(y, dim=-1, keepdim=True)
    # For strided rows, torch's norm is twenty times slower than a sum.
    return y.square().sum(-1, keepdim=True).sqrt()


def is_moderate(norm: Tensor) -> bool:
    """Whether norms are such that the squares in them neither overflowed nor lost digits."""
    if norm.numel() == 0:
        return True
    finfo = torch.finfo(norm.dtype)
    least, largest = map(float, norm.aminmax())
    return finfo.tiny**0.5 / finfo.eps < least and largest < finfo.eps * finfo.max**0.5


def distance_from_sphere(value: Tensor, radius: float) -> Tensor:
    """The change of the largest entry when a vector is scaled to the radius."""
    direction, scale = scaled(value)
    norm = linalg.vector_norm(direction, dim=-1)
    return (scale.squeeze(-1) * norm - radius).abs() / norm.detach()


def scaled(y: Tensor) -> tuple[Tensor, Tensor]:
    """``(y / s, s)`` with s the largest absolute entry, held constant.

    The entries of ``y / s`` are at most 1 and one of them is 1, whatever the size of y, so that
    their squares neither overflow nor underflow. A function of the direction of y alone does not
    depend on s, and has all its derivatives with s held constant.

    A zero vector gives ``y + e_1`` with s = 0. The direction has no derivative there; that at
    ``e_1``, the tangent projection, takes its place.
    """
    largest = y.detach().abs().amax(-1, keepdim=True)
    zero = largest < torch.finfo(y.dtype).tiny
    first = (torch.arange(y.shape[-1], device=y.device) == 0).to(y.dtype)
    direction = torch.where(zero, y + first, y / torch.where(zero, 1.0, largest))
    return direction, torch.where(zero, 0.0, largest)
