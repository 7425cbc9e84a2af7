"""Foreign parametrizations: plain modules that are not constraints."""

import torch
from torch import nn

import constrained.parametrize as ours


class Squash(nn.Module):
    """A foreign parametrization with a right inverse: nonlinear, and it saves its result."""

    def forward(self, x):
        return x.tanh()

    def right_inverse(self, y):
        return y.atanh()


class Split(nn.Module):
    """A foreign parametrization with two originals."""

    def forward(self, a, b):
        return a * b.exp()

    def right_inverse(self, y):
        return y / 2, torch.full_like(y, 2).log()


class Scaled(nn.Module):
    """A foreign parametrization with a buffer of its own."""

    def __init__(self):
        super().__init__()
        self.register_buffer("gain", torch.tensor(2.0))

    def forward(self, x):
        return self.gain * x

    def right_inverse(self, y):
        return y / self.gain


def squashed(P=ours, n=3, **kwargs):
    return P.register_parametrization(nn.Linear(n, n, **kwargs), "weight", Squash())


class FailsLater(nn.Module):
    broken = False

    def forward(self, x):
        return self.does_not_exist if self.broken else x


def ids(model):
    return [id(p) for p in model.parameters()]
