"""Every constraint of the registry: a training step beside the step without it."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import nn

from benchmarks.harness import Timing, compare
from benchmarks.training import RATE, plain, step
from constrained import constrain, get, names

SIZES = (64, 256, 1024)
TALL = ((256, 16), (1024, 64))
BATCHES = (32, 1024)
#: A row that takes longer than so many seconds a step is measured at no larger size.
PATIENCE = 0.5
#: A square weight of this size is measured too, with few rows of input, where a step with the
#: largest of the others takes less than so many seconds, and to make it ten times as many.
HUGE, CHEAP = 4096, 0.02


def every_constraint() -> Iterator[Timing]:
    """Square weights of several sizes, and tall ones, for each entry that a matrix can carry."""
    for name in names():
        yield from _of_one(name)


def _of_one(name: str) -> Iterator[Timing]:
    sizes = list(SIZES)
    for n in sizes:
        start = time.perf_counter()
        layer = _constrained(name, (n, n))
        if layer is None:
            break
        made = time.perf_counter() - start
        taken = _seconds(_step(layer, BATCHES[0]))
        yield from _row(name, (n, n), BATCHES if n in SIZES else BATCHES[:1])
        if max(made, taken) > PATIENCE:
            break
        if n == SIZES[-1] and taken < CHEAP and made < 10 * CHEAP:
            sizes.append(HUGE)
    for shape in TALL:
        if _constrained(name, shape) is not None:
            yield from _row(name, shape, BATCHES)


def _row(name: str, shape: tuple[int, int], batches: tuple[int, ...]) -> Iterator[Timing]:
    for batch in batches:
        layer = _constrained(name, shape)
        if layer is None:
            return
        ours = _step(layer, batch)
        seconds = _seconds(ours)
        contenders = {"plain": _step(plain(shape), batch), "constrained": ours}
        label = f"{name} {shape[0]} x {shape[1]}, batch {batch}"
        rounds = 3 if seconds > 0.05 else 7
        yield from compare(label, contenders, rounds, repeat=max(1, int(0.002 / seconds)))


def _step(layer: nn.Module, batch: int) -> Callable[[], object]:
    return step(layer, batch, torch.optim.SGD(layer.parameters(), lr=RATE))


def _constrained(name: str, shape: tuple[int, int]) -> nn.Linear | None:
    """A layer with the arguments of the first example that the shape can carry."""
    for arguments, _ in get(name).examples:
        constraint = get(name)(**arguments)
        try:
            constraint.check_shape(shape)
        except ValueError:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return constrain(plain(shape), "weight", constraint)
            except ValueError:
                # Arguments such as a mask or a sum may fit no matrix of this shape.
                continue
    return None


def _seconds(call: Callable[[], object]) -> float:
    call()
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
