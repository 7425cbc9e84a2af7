"""Whole models: what a step of one costs with its layers constrained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm as torch_spectral_norm

from benchmarks.harness import Timing, compare
from constrained import constrain

#: Of the images, and of the three convolutions after one another.
SIZE, BATCH, CHANNELS = 32, 16, (3, 32, 64, 64)
CONVOLUTIONAL = f"CNN of three convolutions, {SIZE} x {SIZE} images, batch {BATCH}"

#: The same bound of other norms: of the kernel as a matrix, and of what the layer does to an image.
BY_VIEW, BY_CONVOLUTION = "constrained, by view", "constrained"

_VIEW = {"name": "spectral_norm", "view": "o i h w -> o (i h w)"}


def convolutions(rounds: int = 15) -> Iterator[Timing]:
    """A step of Adam of a convolutional network whose kernels have a bounded norm."""
    models: Mapping[str, nn.Module] = {
        "plain": network(),
        "torch, by view": _under_torch(network()),
        BY_VIEW: constrained(_VIEW),
        f"{BY_VIEW}, scale": constrained({**_VIEW, "map": "scale"}),
        BY_CONVOLUTION: constrained("spectral_norm_conv"),
    }
    steps = {name: step(model) for name, model in models.items()}
    yield from compare(CONVOLUTIONAL, steps, rounds)


def network() -> nn.Sequential:
    """Three convolutions, with pooling between them, and a classifier."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in pairwise(CHANNELS):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(CHANNELS[-1] * (SIZE // 8) ** 2, 10))


def constrained(spec: Any) -> nn.Sequential:
    """The same with every kernel under a constraint."""
    model = network()
    kernels = [f"{i}.weight" for i, m in enumerate(model) if isinstance(m, nn.Conv2d)]
    return constrain(model, dict.fromkeys(kernels, spec))  # type: ignore[return-value]


def _under_torch(model: nn.Sequential) -> nn.Sequential:
    for layer in model:
        if isinstance(layer, nn.Conv2d):
            torch_spectral_norm(layer)
    return model


def step(model: nn.Module) -> Callable[[], object]:
    """A step of Adam on a random batch of images."""
    optimizer = torch.optim.Adam(model.parameters())
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(BATCH, CHANNELS[0], SIZE, SIZE, generator=generator)
    y = torch.randint(10, (BATCH,), generator=generator)

    def call() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    return call
