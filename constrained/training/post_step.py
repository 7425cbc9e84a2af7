"""Hooks before and after each optimizer step: originals become canonical, values are dropped.

The map of a constraint may be cheapest at its canonical parameters: a matrix that is orthogonal
already is its own polar factor. After an optimizer step the parameters are not canonical any more.
The hook below, which torch calls after the step of every optimizer, replaces them by canonical ones
with the same value. Values would be right without it, but an evaluation would compute the full map.

The values that were computed before a step are dropped. Nobody will use them again, and the graphs
behind them hold several times the memory of the weight. With several processes, the parameters that
another process has updated arrive by collectives, which change no version counter.

An optimizer may call another one in its own step: some spread their state over processes, others
evaluate at two points. Then the hook acts once, after the outer step.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Hashable, Iterable
from types import FrameType
from typing import Any

import torch
from torch.optim import LBFGS, Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from constrained.atomic.first_use import at_first_use
from constrained.evaluation.events import expect_writes
from constrained.parametrized.originals_index import (
    is_empty,
    lists_with_original,
    reindex_all,
)
from constrained.training.canonicalize import (
    batch_key,
    canonicalize,
    canonicalize_batch,
    prepare_step,
    replaces_gradient,
    reset_originals,
)
from constrained.training.lbfgs_history import History, has_moved
from constrained.training.optimizer_metric import keeps_points
from constrained.training.processes import Processes, carry_out
from constrained.training.tasks import Task


class _Step:
    """A step of an optimizer that has begun.

    Attributes:
        frame: the id of the frame it runs in.
        code: the code of that frame.
        optimizer: whose step it is. The reference is weak, since after an error nobody ends a step.
        histories: the L-BFGS histories of the optimizer and of those that it has called.
    """

    __slots__ = ("code", "frame", "histories", "optimizer")

    def __init__(self, optimizer: Optimizer, frame: FrameType | None) -> None:
        self.frame, self.code = id(frame), frame and frame.f_code
        self.optimizer = weakref.ref(optimizer)
        self.histories = [History(optimizer)] if isinstance(optimizer, LBFGS) else []


class _Running(threading.local):
    """The steps that are running in this thread, the outermost first."""

    def __init__(self) -> None:
        self.steps: list[_Step] = []


_running = _Running()

#: The ids of the parameters of each optimizer that has stepped.
_known: weakref.WeakKeyDictionary[Optimizer, tuple[int, ...]] = weakref.WeakKeyDictionary()


def _watch_steps() -> None:
    register_optimizer_step_pre_hook(_before_step)
    register_optimizer_step_post_hook(_after_step)


at_first_use(_watch_steps)


def _before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
    # Under a compiler there are no frames, and a compiled step counts as an outer one.
    if is_empty() or torch.compiler.is_compiling():
        return None
    expect_writes()
    frame, steps = sys._getframe(1), _running.steps
    if steps:
        _drop_abandoned(steps, frame)
    steps.append(_Step(optimizer, frame))
    trained = _trained(optimizer)
    prepared = [i for i in _items(optimizer) if _is_trained(i, trained) and replaces_gradient(i)]
    if not prepared:
        return None
    _prepare(prepared)
    # The first argument is the optimizer, the second one the closure, if there is one.
    args = (*args[:1], *(_preparing_after(prepared, closure) for closure in args[1:2]), *args[2:])
    if "closure" in kwargs:
        kwargs = {**kwargs, "closure": _preparing_after(prepared, kwargs["closure"])}
    return args, kwargs


def _prepare(items: list[Any]) -> None:
    _divide([prepare_step(item) for item in items])


def _divide(tasks: Iterable[Task | None]) -> None:
    """Do the tasks of sharded tensors, together with the other processes."""
    due = [task for task in tasks if task is not None]
    if due:
        with torch.no_grad():
            carry_out(due, Processes.of([tensor for task in due for tensor in task.given]))


def _preparing_after(items: list[Any], closure: Any) -> Any:
    """A closure that computes gradients and then replaces those of some tensors."""
    if not callable(closure):
        return closure

    def call(*args: Any, **kwargs: Any) -> Any:
        loss = closure(*args, **kwargs)
        _prepare(items)
        return loss

    return call


def _drop_abandoned(steps: list[_Step], frame: FrameType) -> None:
    """Remove steps that ``frame`` was not called from: they have ended with an error."""
    running = {}
    while (caller := frame.f_back) is not None:
        running[id(caller)] = caller.f_code
        frame = caller
    steps[:] = [step for step in steps if running.get(step.frame) is step.code]


def _after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    del args, kwargs
    if is_empty():
        return
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
        if _is_trained(item, trained) and held.isdisjoint(map(id, item._parameters.values()))
    ]
    if keeps_points(optimizer):
        # They are not replaced, and the parameters are to stay what these stand for.
        due = []
    if step.histories:
        due = _without_history(due, step.histories, trained)
    _canonicalize_all(due, trained)
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
    # The step began before the hooks were registered.
    return _Step(optimizer, frame), steps


def _parameters(optimizer: Optimizer) -> list[Any]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _items(optimizer: Optimizer) -> list[Any]:
    """The lists of the parametrized tensors that an optimizer trains.

    Their order is that of its parameters, which is the same in every process: sharded originals are
    gathered by all processes together.
    """
    parameters = _parameters(optimizer)
    ids = tuple(map(id, parameters))
    if _known.get(optimizer) != ids:
        # FSDP, for one, replaces parameters of modules without calling any method of theirs.
        reindex_all()
        _known[optimizer] = ids
    return list({id(item): item for p in parameters for item in lists_with_original(p)}.values())


def _trained(optimizer: Optimizer) -> set[int]:
    """The ids of the parameters that a step may change. All others must keep every bit."""
    return {id(p) for p in _parameters(optimizer) if p.requires_grad}


def _is_trained(item: Any, trained: set[int]) -> bool:
    """Whether a step may change a tensor."""
    return not trained.isdisjoint(map(id, item._parameters.values()))


def _without_history(items: list[Any], histories: list[History], trained: set[int]) -> list[Any]:
    """The items that no L-BFGS trains. The originals of the others are reset if it is at rest."""
    free: list[Any] = []
    for item in items:
        originals = [p for p in item._parameters.values() if p is not None]
        its = [h for h in histories if h.is_of(originals)]
        if not its:
            free.append(item)
        elif all(h.is_at_rest() for h in its):
            before = [p.detach().clone() for p in originals]
            reset_originals(item, trained)
            if has_moved(originals, before):
                for history in its:
                    history.forget()
    return free


def _canonicalize_all(items: list[Any], trained: set[int]) -> None:
    alike: dict[Hashable, list[Any]] = {}
    shards: list[Task | None] = []
    for item in items:
        key = batch_key(item) if len(items) > 1 else None
        if key is None:
            shards.append(canonicalize(item, trained))
        else:
            alike.setdefault(key, []).append(item)
    _divide(shards)
    for some in alike.values():
        canonicalize_batch(some)
