"""Canonical forms, restored after each optimizer step.

A constraint may have parameters at which its map is cheapest: a matrix that is orthogonal already
is its own polar factor. An optimizer step leaves them, and this hook, which torch calls after the
step of every optimizer, brings them back without changing the value. Nothing depends on it: without
the hook an evaluation computes the full map.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook


class Restorable(Protocol):
    """Something that has originals with a canonical form."""

    def originals(self) -> Sequence[Tensor]:
        """The tensors that an optimizer may have moved."""
        ...

    def restore(self) -> None:
        """Bring them back to their canonical form."""
        ...


_watched: weakref.WeakSet[Any] = weakref.WeakSet()
_installed = False


def watch(item: Restorable) -> None:
    """Restore the originals of ``item`` after each step of an optimizer that holds one of them."""
    global _installed
    _watched.add(item)
    if not _installed:
        register_optimizer_step_post_hook(_restore_after_step)
        _installed = True


def _restore_after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    del args, kwargs
    if not _watched:
        return
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for item in list(_watched):
        if any(id(original) in held for original in item.originals()):
            item.restore()
