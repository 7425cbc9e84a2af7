"""The copying problem as a yardstick.

The gap is the cross-entropy, relative to the best that a network without memory can have. Training
is by random batches, so the gaps to time are larger. The kernel stays orthogonal; all methods have
the same network, start, batches and learning rates.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import geoopt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from benchmarks.copying import _CONTENDERS, HIDDEN, Network, _sequences, baseline
from benchmarks.yardsticks.measure import Loss, Method
from benchmarks.yardsticks.problems import Task
from constrained import constrain
from constrained.optim import RiemannianAdam

#: The learning rates of the kernel; all else has ten times as much.
RATES = (1e-4, 3e-4, 1e-3, 3e-3)

Prepare = Callable[[Network], object]
MakeOptimizer = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]


def copying(delay: int) -> Task:
    """Ten symbols, and so many blanks before they are written down."""

    def violation(W: Tensor) -> float:
        return float((W.double().T @ W.double() - torch.eye(len(W))).abs().max())

    return Task(
        name="copying memory",
        size=f"T = {delay}, {HIDDEN} hidden",
        violation=violation,
        feasibility=1e-5,  # the network is in single precision
        targets=(0.25, 0.02),
    )


def _train(
    prepare: Prepare,
    make: MakeOptimizer,
    context: Callable[[], AbstractContextManager[object]],
    task: Task,
    loss: Loss,
    rate: float,
) -> None:
    delay = int(task.size.split(",")[0].removeprefix("T = "))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Network()
    prepare(network)
    kernel = list(network.kernel.parameters())
    others = [p for p in network.parameters() if all(p is not k for k in kernel)]
    optimizer = make([{"params": kernel, "lr": rate}, {"params": others, "lr": 10 * rate}])
    generator = torch.Generator().manual_seed(0)
    while True:
        x, y = _sequences(delay, generator)
        optimizer.zero_grad()
        with context():
            value = F.cross_entropy(network(x).flatten(0, 1), y.flatten())
            value.backward()
        loss.saw(float(value.detach()) / baseline(delay), network.kernel.weight)
        nn.utils.clip_grad_norm_(others, 1.0)
        optimizer.step()


def _method(
    name: str,
    prepare: Prepare,
    make: MakeOptimizer = torch.optim.Adam,
    context: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Method:
    def solve(task: Task, loss: Loss, rate: float) -> None:
        _train(prepare, make, context, task, loss, rate)

    return Method(name, solve, rates=RATES)


METHODS = [
    _method("constrained, parametrize, Adam", _CONTENDERS["constrained"][0]),
    _method(
        "constrained, project, Adam",
        lambda n: constrain(n, "kernel.weight", "orthogonal", mode="project"),
    ),
    _method(
        "constrained.optim, RiemannianAdam",
        lambda n: constrain(n, "kernel.weight", "orthogonal", mode="project"),
        RiemannianAdam,
    ),
    _method(
        "torch cayley, Adam, cached()",
        _CONTENDERS["torch cayley, cached()"][0],
        context=parametrize.cached,
    ),
    _method(
        "geotorch, Adam, cached()",
        _CONTENDERS["geotorch exp, cached()"][0],
        context=parametrize.cached,
    ),
    _method("geoopt, RiemannianAdam", _CONTENDERS["geoopt"][0], geoopt.optim.RiemannianAdam),
]
