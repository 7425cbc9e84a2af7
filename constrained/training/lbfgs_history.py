"""When the parameters of L-BFGS may be replaced by canonical ones.

The moments of a first-order optimizer are averages of gradients, which stay useful at other
parameters of the same element. L-BFGS compares steps: how much the gradient has changed since the
last evaluation, and how far it has moved the parameters. If the parameters are replaced in between,
both are wrong, and so are the following steps. If its history were cleared each time, it would
start again with steepest descent, which makes no progress on an ill-conditioned problem.

So its parameters stay as they are while it makes progress. Once it has come to rest they are
replaced, and its history is cleared if that has moved them. Then the history is of no more use, but
canonical parameters are: where the map of a closed set folds it over at its boundary, a parameter
outside has hardly a gradient. The canonical one is at the boundary, from where it can go inside
again. So L-BFGS finds the optimum on one face of the set after the other.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import LBFGS

#: How far parameters that are canonical already may move when they are replaced, by rounding, in
#: units of the machine epsilon times the largest of them.
_ROUNDING = 16.0

#: Entries of the optimizer's state that count its steps so far.
_COUNTED = ("n_iter", "func_evals", "prev_loss")


class History:
    """The history of L-BFGS at the beginning of one of its steps, to be compared with the end.

    It refers to the optimizer weakly, since after an error nobody ends a step.

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
        """Whether the step ended early, because the gradient or the progress became too small.

        It counts as at rest, too, if two iterations found too little curvature to remember.
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
