"""Reading a constrained weight: 500 times in a recurrent loop, once in an evaluation, bare."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.utils import parametrize as torch_parametrize
from torch.nn.utils.parametrizations import orthogonal as torch_orthogonal

from benchmarks.harness import Timing, compare
from constrained import constrain

STEPS, HIDDEN, BATCH = 500, 128, 32


def _kernels() -> dict[str, nn.Linear]:
    torch.manual_seed(0)
    start = torch.linalg.qr(torch.randn(HIDDEN, HIDDEN)).Q.contiguous()
    kernels = {}
    for name in ("plain", "polar", "cayley", "exp", "torch cayley"):
        kernel = nn.Linear(HIDDEN, HIDDEN, bias=False)
        with torch.no_grad():
            kernel.weight.copy_(start)
        if name == "torch cayley":
            torch_orthogonal(kernel, orthogonal_map="cayley")
        elif name != "plain":
            constrain(kernel, "weight", "orthogonal", map=name)
        kernels[name] = kernel
    return kernels


def _training_step(kernel: nn.Linear, inputs: torch.Tensor) -> Callable[[], None]:
    optimizer = torch.optim.SGD(kernel.parameters(), lr=1e-3)

    def step() -> None:
        hidden = torch.zeros(BATCH, HIDDEN)
        for x in inputs:
            hidden = torch.tanh(hidden @ kernel.weight.T + x)
        optimizer.zero_grad()
        hidden.square().mean().backward()
        optimizer.step()

    return step


def recurrent_loop(rounds: int = 15) -> list[Timing]:
    """A training step that reads a 128 x 128 orthogonal weight 500 times, forward and backward."""
    inputs = torch.randn(STEPS, BATCH, HIDDEN) / 10
    steps: dict[str, Callable[[], object]] = {}
    for name, kernel in _kernels().items():
        if name != "torch cayley":
            steps[name] = _training_step(kernel, inputs)
            continue
        uncached = _training_step(kernel, inputs)

        def in_context(step: Callable[[], None] = uncached) -> None:
            with torch_parametrize.cached():
                step()

        steps["torch cayley, cached()"] = in_context
        steps["torch cayley"] = uncached
    return compare(f"train, {STEPS} reads of {HIDDEN} x {HIDDEN}", steps, rounds)


def bare_read(rounds: int = 15) -> list[Timing]:
    """Reading ``module.weight`` again while nothing has changed."""
    kernels = _kernels()
    identity = nn.Linear(HIDDEN, HIDDEN)
    torch_parametrize.register_parametrization(identity, "weight", nn.Identity())
    readers: dict[str, Callable[[], object]] = {
        "plain": lambda: kernels["plain"].weight,
        "polar, stored value": lambda: kernels["polar"].weight,
        "torch identity": lambda: identity.weight,
    }
    return compare("read the weight again", readers, rounds, repeat=2000)


def evaluation(rounds: int = 15, size: int = 1024) -> list[Timing]:
    """A forward pass without gradient, batch 1."""
    torch.manual_seed(0)
    x = torch.randn(1, size)
    plain = nn.Linear(size, size)
    ours = constrain(nn.Linear(size, size), "weight", "orthogonal")

    def forward(layer: nn.Linear) -> Callable[[], object]:
        def call() -> None:
            with torch.no_grad():
                layer(x)

        return call

    contenders = {"plain": forward(plain), "polar": forward(ours)}
    return compare(f"eval, batch 1, {size} x {size}", contenders, rounds, repeat=50)
