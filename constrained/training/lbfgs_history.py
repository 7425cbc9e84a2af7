"""Optimizers that remember where they were, and what a restoration is to them.

The moments of a first-order optimizer are averages of gradients: they mean the same at another
parameter of the same element. L-BFGS compares: each step asks how much the gradient has changed
since the last evaluation, and how far the parameters have moved by its own account. A restoration
in between falsifies both, and with them the steps that follow; without its memory it would begin
again with steepest descent, and on an ill-conditioned problem arrive nowhere.

So its parameters are left as they are while it makes progress. When it has come to rest, they are
restored, and its memory, if that has moved them, is dropped. At rest it is worth nothing. But the
restoration is: where the map of a closed set is folded, what was led outside has hardly a gradient,
and is at the boundary after it, from where it can go inside again. So L-BFGS finds the optimum on
one face of the set after the other.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer

#: What restoring parameters that are canonical moves them by at most, in units of the machine
#: epsilon times the largest of them.
_ROUNDING = 16.0

#: What the state says of the steps so far.
_COUNTED = ("n_iter", "func_evals", "prev_loss")


class History:
    """The memory of L-BFGS, seen when one of its steps begins.

    It holds on to nothing of the optimizer: a step that raises never ends.

    Args:
        optimizer: whose memory it is.
    """

    def __init__(self, optimizer: LBFGS) -> None:
        self._optimizer = weakref.ref(optimizer)
        state = self._state()
        self._before = {name: state[name] for name in _COUNTED if name in state}

    def is_of(self, parameters: Iterable[Tensor | None]) -> bool:
        """Whether one of these parameters is the optimizer's."""
        mine = set(map(id, self._group()["params"]))
        return any(id(p) in mine for p in parameters)

    def is_at_rest(self) -> bool:
        """Whether the step ended by itself, for lack of a gradient or of progress.

        Or it goes on, and in two iterations has found nothing to remember, for lack of curvature.
        """
        before, now, group = self._before, self._state(), self._group()
        iterations = now.get("n_iter", 0) - before.get("n_iter", 0)
        evaluations = now.get("func_evals", 0) - before.get("func_evals", 0)
        if iterations < group["max_iter"] and evaluations < group["max_eval"]:
            return True
        if now.get("n_iter", 0) > 1 and not now.get("old_dirs"):
            return True
        # A step of one iteration has no time to see that.
        was, loss = before.get("prev_loss"), now.get("prev_loss")
        if was is None or loss is None:
            return False
        return abs(was - loss) < group["tolerance_change"]

    def forget(self) -> None:
        """Make the next step the first one."""
        self._state()["n_iter"] = 0

    def _group(self) -> dict[str, Any]:
        optimizer = self._optimizer()
        # One that was called in the step of another may be gone.
        return {"params": []} if optimizer is None else optimizer.param_groups[0]

    def _state(self) -> dict[str, Any]:
        optimizer, parameters = self._optimizer(), self._group()["params"]
        # It is kept with the first parameter, for all of them.
        return {} if optimizer is None else optimizer.state.get(parameters[0], {})


def history_of(optimizer: Optimizer) -> History | None:
    """What an optimizer remembers, if a restoration would falsify it."""
    return History(optimizer) if isinstance(optimizer, LBFGS) else None


def has_moved(parameters: Iterable[Tensor], before: Iterable[Tensor]) -> bool:
    """Whether parameters are elsewhere, by more than rounding."""
    for now, was in zip(parameters, before, strict=True):
        if was.numel():
            rounding = _ROUNDING * torch.finfo(was.dtype).eps * was.abs().max()
            if not bool((now.detach() - was).abs().max() <= rounding):
                return True
    return False
