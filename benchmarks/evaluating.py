"""Evaluation: a forward pass without gradient, batch 1, at three sizes, under each constraint."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.utils.parametrizations import orthogonal as torch_orthogonal

from benchmarks.harness import Timing, compare
from constrained import constrain

SIZES = 64, 256, 1024
CONSTRAINTS = ("orthogonal", "positive_definite", "low_rank(rank=8)", "spectral_norm")
#: Torch's map of the largest matrix takes a second a call.
SLOWEST = 256


def evaluation(rounds: int = 25) -> list[Timing]:
    """A linear layer n x n, plain, constrained, and orthogonal by torch's own means."""
    timings = []
    for size in SIZES:
        torch.manual_seed(0)
        x = torch.randn(1, size)
        layers = {"plain": nn.Linear(size, size)}
        for constraint in CONSTRAINTS:
            layers[constraint] = constrain(nn.Linear(size, size), "weight", constraint)
        repeat = 200 if size < SIZES[-1] else 50
        contenders = {name: _forward(layer, x) for name, layer in layers.items()}
        timings += compare(f"eval, batch 1, {size} x {size}", contenders, rounds, repeat)
        if size <= SLOWEST:
            by_torch = torch_orthogonal(nn.Linear(size, size), orthogonal_map="matrix_exp")
            slow = {"plain": contenders["plain"], "torch matrix_exp": _forward(by_torch, x)}
            timings += compare(f"eval, batch 1, {size} x {size}, torch", slow, rounds=5, repeat=5)
    return timings


def _forward(layer: nn.Linear, x: torch.Tensor) -> Callable[[], object]:
    layer.eval()

    def call() -> None:
        with torch.no_grad():
            layer(x)

    return call
