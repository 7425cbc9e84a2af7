"""Optimizer steps that move tensors before they evaluate the loss again, undone if that fails.

L-BFGS, and others that are given a closure, may be anywhere when the loss raises an error, when its
gradient is not finite, or when the user presses Ctrl-C. The optimizers of torch other than L-BFGS
evaluate the closure before they change anything.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from constrained.atomic.contents import store


def moves_before_closure(optimizer: Optimizer) -> bool:
    """Whether a step may have moved tensors already when it calls its closure."""
    is_torch = type(optimizer).__module__.partition(".")[0] == "torch"
    return isinstance(optimizer, LBFGS) or not is_torch


class Rollback:
    """Tensors as they are when a step begins, and the state of L-BFGS.

    Args:
        optimizer: the optimizer. The state of L-BFGS is that of all its parameters together, and
            with it all of them are put back.
        parameters: those of its parameters that are put back.
    """

    def __init__(self, optimizer: Optimizer, parameters: Sequence[Tensor]) -> None:
        self._state: list[tuple[Any, dict[str, Any]]] | None = None
        # Weakly: after an error nobody ends the step, and this remains.
        self._optimizer = weakref.ref(optimizer)
        if isinstance(optimizer, LBFGS):
            parameters = optimizer.param_groups[0]["params"]
            self._state = [
                (parameter, {key: _copied(value) for key, value in state.items()})
                for parameter, state in optimizer.state.items()
            ]
        self._before = [(p, p.detach().clone()) for p in parameters]

    def undoing(self, closure: Any) -> Any:
        """A closure whose errors undo the step that has called it."""

        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return closure(*args, **kwargs)
            except BaseException:
                self.put_back()
                raise

        return call

    @torch.no_grad()
    def put_back(self, parameters: Sequence[Tensor] | None = None) -> None:
        """Undo the step.

        Args:
            parameters: the tensors that are put back, if the optimizer is not L-BFGS; all by
                default.
        """
        optimizer = self._optimizer()
        only = None if parameters is None or self._state is not None else set(map(id, parameters))
        for parameter, value in self._before:
            if only is None or id(parameter) in only:
                store(parameter, value)
        if self._state is not None and optimizer is not None:
            optimizer.state.clear()
            optimizer.state.update(self._state)


def _copied(value: Any) -> Any:
    # The tensors in the lists of L-BFGS are never written.
    return copy.copy(value) if _is_list(value) else copy.deepcopy(value)


def _is_list(value: Any) -> bool:
    return isinstance(value, list)
