"""A small network with a constraint of each kind, for the libraries that take any module."""

import torch
from torch import nn

from constrained import constrain

#: Half a linear space apart: a value that is stored, factors, a linear map, entries.
CONSTRAINTS = {
    "0.weight": "orthogonal",
    "2.weight": "low_rank(rank=2)",
    "4.weight": "positive_definite",
    "6.weight": "spectral_norm(bound=0.5)",
    "6.bias": "simplex",
}


def plain() -> nn.Sequential:
    """A network that is not constrained."""
    layers = [layer for _ in range(3) for layer in (nn.Linear(6, 6), nn.Tanh())]
    return nn.Sequential(*layers, nn.Linear(6, 3))


def network() -> nn.Sequential:
    """The same with constraints."""
    return constrain(plain(), CONSTRAINTS)


def data() -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs, and targets that a rotation gives."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(32, 6, generator=generator)
    return x, x[:, :3].roll(1, 1).contiguous()
