"""Memory: what a constrained layer holds beyond the plain one, in units of the weight."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks import peers
from benchmarks.harness import Timing
from benchmarks.training import constrained, plain
from constrained.constraint.spec import parse

# The profiler notes its start and its end on the terminal otherwise.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

ROWS = (
    ("orthogonal", (16, 1024), ("torch householder", "geotorch exp")),
    ("orthogonal", (256, 256), ("torch cayley", "geotorch exp")),
    ("low_rank(rank=16)", (256, 256), ("geotorch",)),
    ("positive_definite", (256, 256), ("geotorch",)),
)
MOMENTS = ("at rest", "between forward and step")


def bytes_held() -> Iterator[Timing]:
    """The bytes that a model allocates and keeps, at rest and with the graph of a forward pass.

    The unit is the weight itself; the columns of times hold no times here.
    """
    for spec, shape, others in ROWS:
        name = parse(spec).constraint.name or spec
        makers: dict[str, Callable[[], nn.Module]] = {
            "plain": lambda shape=shape: plain(shape),
            "constrained": lambda spec=spec, shape=shape: constrained(spec, shape),
        }
        for peer in others:
            maker = peers.MAKERS[name][peer]
            makers[peer] = lambda maker=maker, spec=spec, shape=shape: maker(plain(shape), spec)[0]
        for moment in MOMENTS:
            for contender, make in makers.items():
                weights = _held(make, moment) / (4 * shape[0] * shape[1])
                row = f"memory, {spec} {shape[0]} x {shape[1]}, {moment}, in weights"
                yield Timing(row, contender, weights, (weights, weights), weights, (weights,) * 2)


def _held(make: Callable[[], nn.Module], moment: str) -> int:
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        kept = _use(make(), moment)
        gc.collect()
    del kept
    return sum(e.nbytes() for e in seen.profiler.kineto_results.events() if e.name() == "[memory]")


def _use(layer: nn.Module, moment: str) -> tuple[nn.Module, Tensor | None]:
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e-3)
    weight: Tensor = layer.weight  # type: ignore[assignment]
    x = torch.ones(1, weight.shape[1])
    del weight
    layer(x).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    return layer, layer(x) if moment == MOMENTS[1] else None
