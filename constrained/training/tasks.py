"""What is to be computed of whole tensors around an optimizer step, equal ones as one batch."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from constrained.atomic import sharded
from constrained.atomic.contents import store
from constrained.attached.attached_constraint import AttachedConstraint
from constrained.constraint.base import Constraint

#: Tensors of at most ``_SMALL`` entries are treated in batches of at most ``_BATCH`` entries.
_SMALL, _BATCH = 2**16, 2**22


@dataclass(eq=False)
class Task:
    """New contents of some tensors, which a constraint computes from others.

    Attributes:
        constraint: the constraint.
        name: what messages call the constrained tensor.
        function: takes the constraint and the whole of `given`, or several of each stacked, and
            returns the whole of what becomes of `written`.
        given: whole tensors or shards.
        written: whole tensors or shards.
        key: tasks with equal keys and functions may be done as one batch, since their constraints
            treat tensors alike; all given and written ones then have the shape of the constrained
            one. None for a task that is done alone.
        group: the processes among which it is divided although all have the whole tensors.
    """

    constraint: Constraint
    name: str
    function: Callable[..., Sequence[Tensor]]
    given: Sequence[Tensor]
    written: Sequence[Tensor]
    key: Hashable | None = None
    group: Any = None

    @staticmethod
    def of(
        tensor: AttachedConstraint,
        function: Callable[..., Sequence[Tensor]],
        given: Sequence[Tensor],
        written: Sequence[Tensor],
    ) -> Task:
        """A task for a plain tensor."""
        constraint, key = tensor.constraint(), tensor.batch_key()
        return Task(constraint, f"'{tensor.path}'", function, given, written, key, tensor.group)

    def write(self, found: Sequence[Tensor]) -> None:
        """Write the results."""
        for old, new in zip(self.written, found, strict=True):
            if new is not old:
                store(old, new)


def gathered(tasks: Sequence[Task]) -> list[Task]:
    """The same tasks with whole tensors given. For shards it is a collective."""
    return [
        replace(task, given=[*map(sharded.whole, task.given)])
        if any(map(sharded.is_shard, task.given))
        else task
        for task in tasks
    ]


def batches(tasks: Sequence[Task]) -> list[list[Task]]:
    """The tasks, with whole tensors given, in lists of those that are done as one batch."""
    if len(tasks) < 2:
        return [[task] for task in tasks]
    alike: dict[Hashable, list[Task]] = {}
    for i, task in enumerate(tasks):
        alike.setdefault(_batch_key(task) or i, []).append(task)
    found: list[list[Task]] = []
    for some in alike.values():
        most = max(1, _BATCH // max(1, some[0].given[0].numel()))
        found += [some[start : start + most] for start in range(0, len(some), most)]
    return found


def results(batch: Sequence[Task]) -> list[Sequence[Tensor]]:
    """What becomes of the written tensors of each task of a batch."""
    first = batch[0]
    if len(batch) == 1:
        return [first.function(first.constraint, *first.given)]
    stacked = map(torch.stack, zip(*(task.given for task in batch), strict=True))
    found = first.function(first.constraint, *stacked)
    return [*zip(*(each.unbind() for each in found), strict=True)]


def _batch_key(task: Task) -> Hashable | None:
    first = task.given[0]
    if task.key is None or not 0 < first.numel() <= _SMALL or not all(map(_is_plain, task.given)):
        return None
    return task.key, task.function, *((t.shape, t.dtype, t.device) for t in task.given)


def _is_plain(tensor: Any) -> bool:
    return type(tensor) in (Tensor, nn.Parameter)
