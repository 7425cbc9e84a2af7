"""Every constraint of the registry: a training step beside the step without it, at three sizes."""

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
TALL = ((1024, 64),)
BATCH = 32
#: A row that takes longer than so many seconds a step is measured at no larger size.
PATIENCE = 0.5


def every_constraint() -> Iterator[Timing]:
    """Square weights of three sizes, and a tall one, for each entry that a matrix can carry."""
    for name in names():
        for shape in (*((n, n) for n in SIZES), *TALL):
            layer = _constrained(name, shape)
            if layer is None:
                continue
            ours = step(layer, BATCH, torch.optim.SGD(layer.parameters(), lr=RATE))
            seconds = _seconds(ours)
            bare = plain(shape)
            contenders: dict[str, Callable[[], object]] = {
                "plain": step(bare, BATCH, torch.optim.SGD(bare.parameters(), lr=RATE)),
                "constrained": ours,
            }
            label = f"{name} {shape[0]} x {shape[1]}, batch {BATCH}"
            rounds = 3 if seconds > 0.05 else 7
            yield from compare(label, contenders, rounds, repeat=max(1, int(0.002 / seconds)))
            if seconds > PATIENCE and shape[0] == shape[1]:
                break


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
