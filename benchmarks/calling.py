"""A linear layer that is called 500 times in a step, as recurrent networks are often written."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from benchmarks.harness import Timing, compare
from constrained import constrain

CALLS, SIZE, BATCH, SEGMENTS = 500, 128, 32, 10
SPECS = ("orthogonal", "positive_definite", "low_rank(rank=8)", "sphere")

Run = Callable[[nn.Linear, Tensor], Tensor]


def called_often(rounds: int = 9) -> Iterator[Timing]:
    """A step in which a layer is called 500 times, in each way to get its gradient."""
    for way, step in WAYS.items():
        contenders: dict[str, Callable[[], object]] = {}
        for spec in ("plain", *SPECS):
            layer = _layer(spec)
            optimizer = torch.optim.SGD(layer.parameters(), lr=1e-3)
            contenders[spec] = lambda s=step, m=layer, o=optimizer: s(m, o)
        yield from compare(row(way), contenders, rounds)


def row(way: str) -> str:
    """The name of the row of one of the `WAYS`."""
    return f"nn.Linear({SIZE}, {SIZE}) called {CALLS} times, {way}"


def _layer(spec: str) -> nn.Linear:
    torch.manual_seed(0)
    layer = nn.Linear(SIZE, SIZE, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.linalg.qr(torch.randn(SIZE, SIZE)).Q)
    return layer if spec == "plain" else constrain(layer, "weight", spec)  # type: ignore[return-value]


def _inputs() -> tuple[Tensor, Tensor]:
    x = torch.randn(BATCH, SIZE, generator=torch.Generator().manual_seed(1))
    return x, torch.zeros(BATCH, SIZE, requires_grad=True)


def _run(layer: nn.Linear, x: Tensor, state: Tensor, calls: int = CALLS) -> Tensor:
    # The state matters little to the next one: whatever the weight, its numbers stay of one size.
    for _ in range(calls):
        state = layer(x) + 1e-3 * state
    return state


def _loss(layer: nn.Linear) -> Tensor:
    return _run(layer, *_inputs()).square().mean()


def _one_backward(layer: nn.Linear, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    _loss(layer).backward()
    optimizer.step()


def _no_step(layer: nn.Linear, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    _loss(layer).backward()


def _accumulation(layer: nn.Linear, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    for _ in range(4):
        _loss(layer).backward()
    optimizer.step()


def _two_backward(layer: nn.Linear, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    loss = _loss(layer)
    loss.backward(retain_graph=True)
    loss.backward()
    optimizer.step()


def _checkpointed(
    layer: nn.Linear, optimizer: torch.optim.Optimizer, *, reentrant: bool = False
) -> None:
    optimizer.zero_grad()
    x, state = _inputs()
    for _ in range(SEGMENTS):
        state = checkpoint(
            lambda s: _run(layer, x, s, CALLS // SEGMENTS), state, use_reentrant=reentrant
        )
    state.square().mean().backward()
    optimizer.step()


def _checkpointed_reentrant(layer: nn.Linear, optimizer: torch.optim.Optimizer) -> None:
    _checkpointed(layer, optimizer, reentrant=True)


WAYS: dict[str, Callable[[nn.Linear, torch.optim.Optimizer], None]] = {
    "one backward pass": _one_backward,
    "no step of an optimizer": _no_step,
    "four batches accumulated": _accumulation,
    "two backward passes through one graph": _two_backward,
    "checkpointed": _checkpointed,
    "checkpointed, reentrant": _checkpointed_reentrant,
}
