"""What follows an optimizer step: canonical forms are restored, and values end.

A constraint may have parameters at which its map is cheapest: a matrix that is orthogonal already
is its own polar factor. An optimizer step leaves them, and this hook, which torch calls after the
step of every optimizer, brings them back without changing the value. Nothing depends on it: without
the hook an evaluation computes the full map.

The values that were computed before a step are dropped. Nobody will use them again, and the graphs
behind them hold several times the memory of the weight. And where there are several processes, the
parameters that another one has stepped arrive by collectives, which move no version counter.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Sequence
from typing import Any, Protocol

from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook


class Stepped(Protocol):
    """A module whose own parameters are originals."""

    _parameters: dict[str, nn.Parameter | None]

    def forget_step(self) -> None:
        """Forget the values that were computed from them."""
        ...

    def restore(self) -> None:
        """Bring them back to their canonical form."""
        ...

    def likeness(self) -> Hashable | None:
        """What small tensors have in common that may be restored as one batch; None if alone."""
        ...

    def restore_all(self, alike: Sequence[Any]) -> None:
        """Restore several of one likeness."""
        ...


_watched: weakref.WeakSet[Any] = weakref.WeakSet()
_with_canonical_form: weakref.WeakSet[Any] = weakref.WeakSet()
_installed = False


def watch(item: Stepped, has_canonical: bool) -> None:
    """Do what follows each step of an optimizer that holds one of the parameters of ``item``.

    Args:
        item: a parametrized tensor.
        has_canonical: whether there is a form to restore.
    """
    global _installed
    _watched.add(item)
    if has_canonical:
        _with_canonical_form.add(item)
    if not _installed:
        register_optimizer_step_post_hook(_after_step)
        _installed = True


def _after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    del args, kwargs
    if not _watched:
        return
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    place = {parameter: i for i, parameter in enumerate(held)}
    due: list[tuple[int, Any]] = []
    for item in list(_watched):
        places = [place[id(p)] for p in item._parameters.values() if id(p) in place]
        if places:
            due.append((min(places), item))
    # In the same order in every process, which sharded originals are gathered from.
    alike: dict[Hashable, list[Any]] = {}
    for _, item in sorted(due, key=lambda pair: pair[0]):
        item.forget_step()
        if item in _with_canonical_form:
            likeness = item.likeness() if len(due) > 1 else None
            if likeness is None:
                item.restore()
            else:
                alike.setdefault(likeness, []).append(item)
    for items in alike.values():
        items[0].restore_all(items)
