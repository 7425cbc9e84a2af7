"""Batches of small orthogonal matrices: a step of the map alone, beside one batched product."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal as torch_orthogonal

from benchmarks.harness import Timing, compare
from benchmarks.training import RATE
from constrained import constrain

SHAPES = ((4096, 4), (2048, 8), (1024, 16), (256, 32), (64, 64))


class Batch(nn.Module):
    """A batch of square matrices."""

    def __init__(self, count: int, size: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(count, size, size, generator=generator))


def small_matrices(rounds: int = 15) -> Iterator[Timing]:
    """Read, backward from a given gradient, step: of matrices that nothing is multiplied by."""
    for count, size in SHAPES:
        A, B = torch.randn(count, size, size), torch.randn(count, size, size)
        by_torch = torch_orthogonal(Batch(count, size), orthogonal_map="cayley")
        contenders: dict[str, Callable[[], object]] = {
            "one batched product": lambda A=A, B=B: A @ B,
            "plain": step(Batch(count, size)),
            "constrained": step(constrain(Batch(count, size), "weight", "orthogonal")),
            "torch cayley": step(by_torch),
        }
        yield from compare(f"orthogonal {count} x {size} x {size}", contenders, rounds, repeat=3)


def step(module: nn.Module) -> Callable[[], object]:
    """A step from a given gradient."""
    optimizer = torch.optim.SGD(module.parameters(), lr=RATE)
    weight: Tensor = module.weight  # type: ignore[assignment]
    gradient = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) / 100

    def call() -> None:
        optimizer.zero_grad()
        module.weight.backward(gradient)  # type: ignore[operator]
        optimizer.step()

    return call
