"""``mode="project"`` beside ``mode="parametrize"``, geoopt and the step without a constraint.

Each row has the same layers, batches and learning rates for all contenders, which take turns.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Adam
from torch.optim import optimizer as torch_hooks

from benchmarks import batches, layers, peers
from benchmarks.harness import Timing, compare
from benchmarks.training import ROUNDS, plain, step
from constrained import constrain

PROJECT, PARAMETRIZE, PLAIN, GEOOPT = "project", "parametrize", "plain", "geoopt RSGD"

#: Row: constraint, shape of the weight (out x in).
ROWS: tuple[tuple[str, tuple[int, int]], ...] = (
    ("orthogonal", (64, 64)),
    ("orthogonal", (1024, 64)),
    ("orthogonal", (256, 256)),
    ("orthogonal", (1024, 1024)),
    ("nonnegative", (1024, 1024)),
    ("box(low=-0.03, high=0.03)", (1024, 1024)),
    ("sphere", (1024, 1024)),
    ("max_norm(bound=0.5)", (1024, 1024)),
    ("simplex", (1024, 1024)),
)

#: Elementwise sets and sets of rows take few passes over memory: more rounds cost little.
_MANY = 25

_TOKENS, _WORDS, _WIDTH = 64, 20_000, 128


def named(what: str) -> str:
    """The name of a row, which no other group has."""
    return f"{what}, as a plain parameter"


def layer_row(spec: str, shape: tuple[int, int]) -> str:
    """The name of the row of a linear layer."""
    return named(f"{spec} {shape[0]} x {shape[1]}, batch 32")


def small_row(count: int, size: int) -> str:
    """The name of the row of a batch of small matrices."""
    return named(f"orthogonal {count} x {size} x {size}")


def encoder_row(count: int) -> str:
    """The name of the row of an encoder with as many layers."""
    return named(f"encoder of {count} layers, width 256, 128 tokens, orthogonal q, k, v, o, step")


def accumulating_row(passes: int) -> str:
    """The name of the row of three layers."""
    return named(f"three orthogonal layers 256 x 256, batch 32, backward passes a step: {passes}")


EMBEDDING = named(f"nn.Embedding({_WORDS}, {_WIDTH}) under sphere, {_TOKENS} rows read")
EVALUATION, READING = named("eval, batch 1, 1024 x 1024"), named("read the weight")
IDLE = "optimizer step of 200 plain tensors, no projected tensor in the process"
OTHERS_IDLE = "optimizer step of 200 plain tensors, projected tensors of another model"


def _both(model: Callable[[], Any], rules: Any) -> dict[str, Any]:
    """The model without constraints, and with them in both modes."""
    return {
        PLAIN: model(),
        PROJECT: constrain(model(), rules, mode="project"),
        PARAMETRIZE: constrain(model(), rules),
    }


def linear_layers(rounds: int | None = None) -> Iterator[Timing]:
    """A step of one linear layer."""
    for spec, shape in ROWS:
        made = _both(lambda shape=shape: plain(shape), {"weight": spec})
        steps = {name: step(layer, 32) for name, layer in made.items()}
        if spec in ("orthogonal", "sphere"):
            steps[GEOOPT] = _by_geoopt(spec, shape)
        is_cheap = spec != "orthogonal"
        count = rounds or (_MANY if is_cheap else ROUNDS[min(shape)])
        yield from compare(layer_row(spec, shape), steps, count, repeat=5 if shape[0] < 1024 else 2)


def _by_geoopt(spec: str, shape: tuple[int, int]) -> Callable[[], object]:
    if spec == "orthogonal":
        return step(*_geoopt(peers.MAKERS["orthogonal"][GEOOPT](plain(shape), spec)))
    manifold = peers.geoopt.Sphere()
    layer = peers.OnManifold(nn.functional.normalize(plain(shape).weight.detach()), manifold)
    return step(layer, 32, peers.geoopt.optim.RiemannianSGD(layer.parameters(), lr=peers.RATE))


def _geoopt(made: peers.Made) -> tuple[nn.Module, int, torch.optim.Optimizer | None]:
    return made[0], 32, made[1]


def small_matrices(rounds: int = 9) -> Iterator[Timing]:
    """Backward from a given gradient, and a step, of batches of small orthogonal matrices."""
    for count, size in batches.SHAPES:
        A, B = torch.randn(count, size, size), torch.randn(count, size, size)
        made = _both(
            lambda count=count, size=size: batches.Batch(count, size), {"weight": "orthogonal"}
        )
        contenders: dict[str, Callable[[], object]] = {
            "one batched product": lambda A=A, B=B: A @ B,
            **{name: batches.step(module) for name, module in made.items()},
        }
        yield from compare(small_row(count, size), contenders, rounds, repeat=3)


def reading(rounds: int = 15, size: int = 1024) -> Iterator[Timing]:
    """An evaluation, and a bare read."""
    made = _both(lambda: plain((size, size)).eval(), {"weight": "orthogonal"})
    x = torch.randn(1, size)

    def evaluation(layer: nn.Module) -> Callable[[], object]:
        def call() -> None:
            with torch.no_grad():
                layer(x)

        return call

    evaluations = {name: evaluation(layer) for name, layer in made.items()}
    yield from compare(EVALUATION, evaluations, rounds, repeat=50)
    readers = {name: lambda layer=layer: layer.weight for name, layer in made.items()}
    yield from compare(READING, readers, rounds, repeat=5000)


def encoders(rounds: int = 7) -> Iterator[Timing]:
    """A step of Adam of encoders with orthogonal q, k, v and o."""
    x = torch.randn(1, 128, layers.WIDTH, generator=torch.Generator().manual_seed(0))
    for count in (4, 12):
        made = _both(lambda count=count: layers.encoder_of(count), layers.ATTENTION)
        steps = {
            name: layers.step(model, x, Adam(model.parameters())) for name, model in made.items()
        }
        yield from compare(encoder_row(count), steps, rounds)


def embedding(rounds: int = 25) -> Iterator[Timing]:
    """A step on 64 rows of a large table whose rows have norm 1."""
    tokens = torch.randint(_WORDS, (_TOKENS,), generator=torch.Generator().manual_seed(1))

    def table() -> nn.Embedding:
        torch.manual_seed(0)
        return nn.Embedding(_WORDS, _WIDTH)

    contenders: dict[str, Callable[[], object]] = {}
    for name, made in _both(table, {"weight": "sphere"}).items():
        sgd = SGD(made.parameters(), lr=0.1)

        def call(made: nn.Module = made, optimizer: torch.optim.Optimizer = sgd) -> None:
            optimizer.zero_grad()
            made(tokens).sin().sum().backward()
            optimizer.step()

        contenders[name] = call
    yield from compare(EMBEDDING, contenders, rounds)


def accumulating(rounds: int = 15) -> Iterator[Timing]:
    """A step of three orthogonal layers, after one backward pass and after four."""
    x = torch.randn(32, 256, generator=torch.Generator().manual_seed(1))

    def stack() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(*(nn.Linear(256, 256) for _ in range(3)))

    for passes in (1, 4):
        contenders: dict[str, Callable[[], object]] = {}
        for name, model in _both(stack, {"*.weight": "orthogonal"}).items():
            optimizer = SGD(model.parameters(), lr=1e-2)

            def call(model: nn.Module = model, optimizer: Any = optimizer, n: int = passes) -> None:
                optimizer.zero_grad()
                for _ in range(n):
                    model(x).square().mean().backward()
                optimizer.step()

            contenders[name] = call
        yield from compare(accumulating_row(passes), contenders, rounds, repeat=5)


def idle(rounds: int = 51) -> Iterator[Timing]:
    """A step of an optimizer that trains no projected tensor, with our hooks and without any."""
    weights = [nn.Parameter(torch.randn(16)) for _ in range(200)]
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    optimizer = SGD(weights, lr=0.1)
    # The hooks are there from the first constrained tensor on.
    other = constrain(plain((8, 8)), "weight", "orthogonal", mode="project")
    hooks = torch_hooks._global_optimizer_pre_hooks, torch_hooks._global_optimizer_post_hooks

    def without() -> None:
        kept = [dict(each) for each in hooks]
        for each in hooks:
            each.clear()
        try:
            for _ in range(10):
                optimizer.step()
        finally:
            for each, old in zip(hooks, kept, strict=True):
                each.update(old)

    def with_hooks() -> None:
        for _ in range(10):
            optimizer.step()

    contenders: dict[str, Callable[[], object]] = {PLAIN: without, PROJECT: with_hooks}
    yield from compare(OTHERS_IDLE, contenders, rounds)
    del other
    gc.collect()
    yield from compare(IDLE, contenders, rounds)


def projecting() -> Iterator[Timing]:
    """All rows."""
    # Before the other rows, whose tensors the process would have as well.
    yield from chain(
        idle(),
        linear_layers(),
        small_matrices(),
        reading(),
        encoders(),
        embedding(),
        accumulating(),
    )
