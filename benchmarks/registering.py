"""Registration: how long it takes to constrain a layer that exists."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import geotorch
import torch
from torch import nn
from torch.nn.utils.parametrizations import orthogonal as torch_orthogonal

from benchmarks.harness import Timing, compare
from constrained import constrain

SHAPES = ((64, 64), (256, 256), (1024, 64))


def registration(rounds: int = 9) -> Iterator[Timing]:
    """Make a layer, and make it orthogonal."""
    for n, p in SHAPES:

        def make(register: Callable[[nn.Linear], object], n: int = n, p: int = p):
            def call() -> None:
                torch.manual_seed(0)
                register(nn.Linear(p, n, bias=False))

            return call

        contenders = {
            "plain": make(lambda layer: layer),
            "constrained": make(lambda layer: constrain(layer, "weight", "orthogonal")),
            "torch": make(torch_orthogonal),
            "geotorch": make(lambda layer: geotorch.orthogonal(layer, "weight")),
        }
        yield from compare(f"register orthogonal {n} x {p}", contenders, rounds)
