"""Compilation: how long ``torch.compile`` takes for a layer's first forward and backward pass."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.utils.parametrizations import orthogonal as torch_orthogonal

from benchmarks.harness import Timing, compare
from constrained import constrain

SIZE = 16
CONSTRAINTS = ("orthogonal", "spectral_norm", "sphere")


def compilation(rounds: int = 3) -> list[Timing]:
    """A small network with inductor, no cache on disk; its largest weight constrained."""
    contenders = {"plain": _first_step(lambda model: None)}
    for constraint in CONSTRAINTS:
        contenders[constraint] = _first_step(
            lambda model, name=constraint: constrain(model, "2.weight", name)
        )
    contenders["torch cayley"] = _first_step(
        lambda model: torch_orthogonal(model[2], orthogonal_map="cayley")
    )
    return compare("compile a network and its first step", contenders, rounds)


def _first_step(prepare: Callable[[nn.Sequential], object]) -> Callable[[], object]:
    from torch._inductor import config

    def call() -> None:
        torch._dynamo.reset()
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(8, SIZE), nn.ReLU(), nn.Linear(SIZE, SIZE), nn.ReLU(), nn.Linear(SIZE, 4)
        )
        prepare(model)
        with warnings.catch_warnings(), config.patch(force_disable_caches=True):
            warnings.simplefilter("ignore")
            compiled = torch.compile(model, fullgraph=True)
            compiled(torch.randn(4, 8)).sum().backward()

    return call
