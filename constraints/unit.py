"""Vectors scaled to a given length, at every magnitude."""

from __future__ import annotations

import torch
from torch import Tensor


def normalized(y: Tensor, radius: float) -> Tensor:
    """``radius y / ||y||`` along the last dimension; of zero, that of the first unit vector."""
    direction, _ = scaled(y)
    return radius * direction / torch.linalg.vector_norm(direction, dim=-1, keepdim=True)


def distance_from_sphere(value: Tensor, radius: float) -> Tensor:
    """The change of the largest entry when a vector is scaled to the radius."""
    direction, scale = scaled(value)
    norm = torch.linalg.vector_norm(direction, dim=-1)
    return (scale.squeeze(-1) * norm - radius).abs() / norm.detach()


def scaled(y: Tensor) -> tuple[Tensor, Tensor]:
    """``(y / s, s)`` with s the largest absolute entry, held constant.

    The entries of ``y / s`` are at most 1 and one of them is 1, whatever the size of y, so that
    their squares neither overflow nor underflow. A function of the direction of y alone does not
    depend on s, and has all its derivatives with s held constant.

    A zero vector gives ``y + e_1`` with s = 0: its derivative, the tangent projection at ``e_1``,
    takes the place of one that does not exist.
    """
    largest = y.detach().abs().amax(-1, keepdim=True)
    zero = largest < torch.finfo(y.dtype).tiny
    first = (torch.arange(y.shape[-1], device=y.device) == 0).to(y.dtype)
    direction = torch.where(zero, y + first, y / torch.where(zero, 1.0, largest))
    return direction, torch.where(zero, 0.0, largest)
