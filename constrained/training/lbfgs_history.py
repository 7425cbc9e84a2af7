"""When the parameters of L-BFGS may be restored to their canonical form.

The moments of a first-order optimizer are averages of gradients: they mean the same at another
parameter of the same element. L-BFGS compares: each step asks how much the gradient has changed
since the last evaluation, and how far the parameters have moved by its own account. A restoration
in between falsifies both, and the steps that follow. Without its history it would start again with
steepest descent, which makes no progress on an ill-conditioned problem.

So its parameters are left as they are while it makes progress. Once it has come to rest they are
restored, and its history is dropped if that has moved them. At rest the history is worth nothing,
but the restoration is worth something: where the map of a closed set is folded, a parameter that
was led outside has hardly a gradient. After the restoration it is at the boundary, from where it
can go inside again. So L-BFGS finds the optimum on one face of the set after the other.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import LBFGS

#: The most that a restoration moves canonical parameters by, in units of the machine epsilon times
#: the largest of them.
_ROUNDING = 16.0

#: Entries of the optimizer's state that count its steps so far.
_COUNTED = ("n_iter", "func_evals", "prev_loss")


class History:
    """The history of L-BFGS, looked at when one of its steps begins.

    It refers to the optimizer weakly, since a step that raises never ends.

    Args:
        optimizer: the optimizer.
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

        Also if it goes on, but two iterations found too little curvature to remember anything.
        """
        before, now, group = self._before, self._state(), self._group()
        iterations = now.get("n_iter", 0) - before.get("n_iter", 0)
        evaluations = now.get("func_evals", 0) - before.get("func_evals", 0)
        if iterations < group["max_iter"] and evaluations < group["max_eval"]:
            return True
        if now.get("n_iter", 0) > 1 and not now.get("old_dirs"):
            return True
        # A step of one iteration ends before it could compare two losses.
        was, loss = before.get("prev_loss"), now.get("prev_loss")
        if was is None or loss is None:
            return False
        return abs(was - loss) < group["tolerance_change"]

    def forget(self) -> None:
        """Make the next step the first one."""
        self._state()["n_iter"] = 0

    def _group(self) -> dict[str, Any]:
        optimizer = self._optimizer()
        # An optimizer that was called in the step of another may be gone.
        return {"params": []} if optimizer is None else optimizer.param_groups[0]

    def _state(self) -> dict[str, Any]:
        optimizer, parameters = self._optimizer(), self._group()["params"]
        # L-BFGS keeps the state of all parameters with the first.
        return {} if optimizer is None else optimizer.state.get(parameters[0], {})


def has_moved(parameters: Iterable[Tensor], before: Iterable[Tensor]) -> bool:
    """Whether parameters have moved by more than rounding."""
    for now, was in zip(parameters, before, strict=True):
        if was.numel():
            rounding = _ROUNDING * torch.finfo(was.dtype).eps * was.abs().max()
            if not bool((now.detach() - was).abs().max() <= rounding):
                return True
    return False
