"""A training step of one linear layer: what each constraint costs beside the step without it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks import peers
from benchmarks.harness import Timing, compare
from constrained import constrain, names

#: The learning rate: a step changes a weight by about a thousandth of its norm, which is what
#: training usually does, and what a scheme that restores a constraint afterwards depends on.
RATE = 0.1

#: Row: constraint, shape of the weight (out x in), batch, and the peers by name.
ROWS: tuple[tuple[str, tuple[int, int], int, tuple[str, ...]], ...] = (
    ("orthogonal", (64, 64), 32, ("geoopt RSGD", "torch cayley", "torch exp", "geotorch exp")),
    ("orthogonal", (256, 256), 32, ("geoopt RSGD", "torch cayley", "torch exp", "geotorch exp")),
    ("orthogonal", (1024, 1024), 32, ("geoopt RSGD", "torch cayley", "torchlip Bjorck")),
    ("orthogonal", (1024, 1024), 1024, ("geoopt RSGD", "torch cayley")),
    ("orthogonal", (1024, 64), 32, ("geoopt RSGD", "torch householder")),
    ("positive_definite", (64, 64), 32, ("geotorch", "geoopt")),
    ("positive_definite", (256, 256), 32, ("geotorch", "geoopt")),
    ("positive_definite", (1024, 1024), 32, ("geotorch", "geoopt")),
    ("low_rank(rank=4)", (64, 64), 32, ("geotorch",)),
    ("low_rank(rank=16)", (256, 256), 32, ("geotorch",)),
    ("low_rank(rank=64)", (1024, 1024), 32, ("geotorch",)),
    ("doubly_stochastic", (64, 64), 32, ("20 log steps",)),
    ("doubly_stochastic", (256, 256), 32, ("20 log steps",)),
    ("doubly_stochastic", (1024, 1024), 32, ("20 log steps",)),
    ("spectral_norm", (64, 64), 32, ("torch", "torchlip")),
    ("spectral_norm", (256, 256), 32, ("torch", "torchlip")),
    ("spectral_norm", (1024, 1024), 32, ("torch", "torchlip")),
    # With 16, 64 and 256 singular values at the bound from the start.
    ("spectral_norm(bound=1.091)", (1024, 1024), 32, ("torch",)),
    ("spectral_norm(bound=0.9913)", (1024, 1024), 32, ("torch",)),
    ("spectral_norm(bound=0.7334)", (1024, 1024), 32, ("torch",)),
    ("sphere", (64, 64), 32, ("geotorch",)),
    ("sphere", (1024, 1024), 32, ("geotorch",)),
    ("correlation", (64, 64), 32, ("torch",)),
    ("correlation", (256, 256), 32, ("torch",)),
    ("correlation", (1024, 1024), 32, ("torch",)),
)

#: Other maps of a constraint: the contender's name, and its specification.
REBASED, SCALE = "constrained, rebased", "constrained, scale"
_OTHER_MAPS = {
    "orthogonal": (REBASED, "orthogonal(map='rebased')"),
    "spectral_norm": (SCALE, "spectral_norm(map='scale')"),
}

#: How many rounds a row takes, by the number of rows of its weight.
ROUNDS = {64: 25, 256: 15, 1024: 7}


def training(rows: tuple[str, ...] = ()) -> Iterator[Timing]:
    """The rows whose constraint is named, all by default, each in turn with its peers."""
    for spec, shape, batch, others in ROWS:
        name = spec.partition("(")[0]
        if (rows and name not in rows) or name not in names():
            continue
        layers = {"plain": (plain(shape), None), "constrained": (constrained(spec, shape), None)}
        for peer in others:
            layers[peer] = peers.MAKERS[name][peer](plain(shape), spec)
        steps = {
            contender: step(layer, batch, optimizer)
            for contender, (layer, optimizer) in layers.items()
        }
        if name == "orthogonal" and shape[0] == shape[1]:
            steps["one matrix product"] = product(shape[0])
        if spec in _OTHER_MAPS and shape[0] == shape[1]:
            other, words = _OTHER_MAPS[name]
            steps[other] = step(constrained(words, shape), batch)
        label = f"{spec} {shape[0]} x {shape[1]}, batch {batch}"
        yield from compare(label, steps, ROUNDS[shape[0]], repeat=1 if shape[0] > 256 else 5)


def plain(shape: tuple[int, int]) -> nn.Linear:
    """A linear layer with a given weight shape."""
    torch.manual_seed(0)
    return nn.Linear(shape[1], shape[0], bias=False)


def constrained(spec: str, shape: tuple[int, int]) -> nn.Linear:
    """The same layer under a constraint of this project."""
    return constrain(plain(shape), "weight", spec)


def product(n: int) -> Callable[[], Tensor]:
    """An ``n x n x n`` matrix product, the unit that manifold methods are counted in."""
    A, B = torch.randn(n, n), torch.randn(n, n)
    return lambda: A @ B


def step(
    layer: nn.Module, batch: int, optimizer: torch.optim.Optimizer | None = None
) -> Callable[[], Tensor]:
    """One step of SGD on half the mean squared difference from a random target."""
    optimizer = optimizer or torch.optim.SGD(layer.parameters(), lr=RATE)
    generator = torch.Generator().manual_seed(1)
    weight: Tensor = layer.weight  # type: ignore[assignment]
    x = torch.randn(batch, weight.shape[1], generator=generator)
    y = torch.randn(batch, weight.shape[0], generator=generator)

    def call() -> Tensor:
        optimizer.zero_grad()
        loss = (layer(x) - y).square().mean() / 2
        loss.backward()
        optimizer.step()
        return loss

    return call
