"""What precedes and follows an optimizer step: canonical forms are restored, values are dropped.

A constraint may have parameters at which its map is cheapest: a matrix that is orthogonal already
is its own polar factor. An optimizer step leaves them. The hook below, which torch calls after the
step of every optimizer, brings them back without changing the value. Correctness does not depend on
it: without the hook an evaluation computes the full map.

The values that were computed before a step are dropped. Nobody will use them again, and the graphs
behind them hold several times the memory of the weight. With several processes, the parameters
that another process has stepped arrive by collectives, which change no version counter.

An optimizer may call another one in its own step, as those do that spread their state over
processes, or look at two points before a step. Then the hook acts once, after the outer step.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Hashable
from types import FrameType
from typing import Any

import torch
from torch.optim import LBFGS, Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from constrained.evaluation.events import expect_writes
from constrained.parametrized.originals_index import (
    call_when_first_indexed,
    lists_with_original,
    reindex_all,
)
from constrained.training.canonicalize import (
    batch_key,
    has_step_gradient,
    prepare_step,
    restart,
    restore,
    restore_batch,
)
from constrained.training.lbfgs_history import History, has_moved


class _Step:
    """A step of an optimizer that has begun.

    Attributes:
        frame: the id of the frame it runs in.
        code: what runs there.
        optimizer: whose step it is. The reference is weak, since a step that raises never ends.
        histories: those of the optimizer and of the ones that it has called.
    """

    __slots__ = ("code", "frame", "histories", "optimizer")

    def __init__(self, optimizer: Optimizer, frame: FrameType | None) -> None:
        self.frame, self.code = id(frame), frame and frame.f_code
        self.optimizer = weakref.ref(optimizer)
        self.histories = [History(optimizer)] if isinstance(optimizer, LBFGS) else []


class _Running(threading.local):
    """The steps that this thread is in, the outermost first."""

    def __init__(self) -> None:
        self.steps: list[_Step] = []


_running = _Running()

#: The ids of the parameters of each optimizer that has stepped.
_known: weakref.WeakKeyDictionary[Optimizer, tuple[int, ...]] = weakref.WeakKeyDictionary()


def _watch_steps() -> None:
    register_optimizer_step_pre_hook(_before_step)
    register_optimizer_step_post_hook(_after_step)


call_when_first_indexed(_watch_steps)


def _before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
    # Under a compiler there are no frames: a compiled step counts as a step of its own.
    if torch.compiler.is_compiling():
        return None
    expect_writes()
    frame, steps = sys._getframe(1), _running.steps
    if steps:
        _drop_abandoned(steps, frame)
    steps.append(_Step(optimizer, frame))
    trained = _trained(optimizer)
    prepared = [i for i in _items(optimizer) if _has(i, trained) and has_step_gradient(i)]
    if not prepared:
        return None
    _prepare(prepared)
    # The first argument is the optimizer.
    args = tuple(_followed_by(prepared, a) if i == 1 else a for i, a in enumerate(args))
    return args, {k: _followed_by(prepared, v) if k == "closure" else v for k, v in kwargs.items()}


def _prepare(items: list[Any]) -> None:
    for item in items:
        prepare_step(item)


def _followed_by(items: list[Any], closure: Any) -> Any:
    """A closure that computes gradients and then replaces those of some tensors."""
    if not callable(closure):
        return closure

    def call(*args: Any, **kwargs: Any) -> Any:
        loss = closure(*args, **kwargs)
        _prepare(items)
        return loss

    return call


def _drop_abandoned(steps: list[_Step], frame: FrameType) -> None:
    """Remove steps that ``frame`` was not called from: they have raised, and never end."""
    running = {}
    while (caller := frame.f_back) is not None:
        running[id(caller)] = caller.f_code
        frame = caller
    steps[:] = [step for step in steps if running.get(step.frame) is step.code]


def _after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    del args, kwargs
    frame = None if torch.compiler.is_compiling() else sys._getframe(1)
    step, around = _finished(optimizer, frame)
    items = _items(optimizer)
    for item in items:
        # Only the numbers in the originals have moved: how to evaluate stays known.
        item._store.drop(stepped=True)
    for outer in around:
        outer.histories += step.histories
    outside = [other for outer in around if (other := outer.optimizer()) is not None]
    held = {id(p) for other in outside for p in _parameters(other)}
    trained = _trained(optimizer)
    due = [
        item
        for item in items
        if _has(item, trained) and held.isdisjoint(map(id, item._parameters.values()))
    ]
    _restore(_without_history(due, step.histories, trained) if step.histories else due, trained)
    if frame is not None:
        expect_writes()


def _finished(optimizer: Optimizer, frame: FrameType | None) -> tuple[_Step, list[_Step]]:
    """The step that ends in this frame, and the steps around it."""
    steps = _running.steps
    for i in reversed(range(len(steps))):
        if steps[i].frame == id(frame):
            step = steps[i]
            del steps[i:]
            return step, steps
    # It began before the hooks were registered.
    return _Step(optimizer, frame), steps


def _parameters(optimizer: Optimizer) -> list[Any]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _items(optimizer: Optimizer) -> list[Any]:
    """The tensors that an optimizer steps.

    In the order of its parameters, which is the same in every process: sharded originals are
    gathered by all of them together.
    """
    parameters = _parameters(optimizer)
    ids = tuple(map(id, parameters))
    if _known.get(optimizer) != ids:
        # FSDP, for one, replaces parameters of modules without calling any method of theirs.
        reindex_all()
        _known[optimizer] = ids
    return list({id(item): item for p in parameters for item in lists_with_original(p)}.values())


def _trained(optimizer: Optimizer) -> set[int]:
    """The ids of the parameters that a step may change. All others keep every bit."""
    return {id(p) for p in _parameters(optimizer) if p.requires_grad}


def _has(item: Any, trained: set[int]) -> bool:
    """Whether a step may change a tensor."""
    return not trained.isdisjoint(map(id, item._parameters.values()))


def _without_history(items: list[Any], histories: list[History], trained: set[int]) -> list[Any]:
    """The items that no L-BFGS steps; those that one steps are restored here if it is at rest."""
    free: list[Any] = []
    for item in items:
        originals = [p for p in item._parameters.values() if p is not None]
        its = [h for h in histories if h.is_of(originals)]
        if not its:
            free.append(item)
        elif all(h.is_at_rest() for h in its):
            before = [p.detach().clone() for p in originals]
            restart(item, trained)
            if has_moved(originals, before):
                for history in its:
                    history.forget()
    return free


def _restore(items: list[Any], trained: set[int]) -> None:
    alike: dict[Hashable, list[Any]] = {}
    for item in items:
        key = batch_key(item) if len(items) > 1 else None
        if key is None:
            restore(item, trained)
        else:
            alike.setdefault(key, []).append(item)
    for some in alike.values():
        restore_batch(some)
