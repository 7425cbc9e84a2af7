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


def embedding(rounds: int = 15) -> Iterator[Timing]:
    """A step on 64 rows of a large embedding whose rows have norm 1."""
    tokens = torch.randint(20_000, (64,), generator=torch.Generator().manual_seed(1))
    contenders: dict[str, Callable[[], object]] = {}
    for name in ("plain", "constrained"):
        torch.manual_seed(0)
        table: nn.Module = nn.Embedding(20_000, 128)
        if name == "constrained":
            constrain(table, "weight", "sphere")
        optimizer = torch.optim.SGD(table.parameters(), lr=0.1)

        def call(table: nn.Module = table, optimizer: torch.optim.Optimizer = optimizer) -> None:
            optimizer.zero_grad()
            table(tokens).sin().sum().backward()
            optimizer.step()

        contenders[name] = call
    yield from compare("nn.Embedding(20000, 128) under sphere, 64 rows read", contenders, rounds)


def accumulating(rounds: int = 15) -> Iterator[Timing]:
    """A step of three orthogonal layers, after one backward pass and after four."""
    x = torch.randn(32, 256, generator=torch.Generator().manual_seed(1))
    for passes in (1, 4):
        contenders: dict[str, Callable[[], object]] = {}
        for name in ("plain", "constrained"):
            torch.manual_seed(0)
            model: nn.Module = nn.Sequential(*(nn.Linear(256, 256) for _ in range(3)))
            if name == "constrained":
                constrain(model, "*.weight", "orthogonal")
            optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)

            def call(model: nn.Module = model, optimizer: Any = optimizer, n: int = passes) -> None:
                optimizer.zero_grad()
                for _ in range(n):
                    model(x).square().mean().backward()
                optimizer.step()

            contenders[name] = call
        row = f"three orthogonal layers 256 x 256, batch 32, backward passes a step: {passes}"
        yield from compare(row, contenders, rounds, repeat=5)


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
