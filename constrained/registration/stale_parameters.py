"""Stale parameters: an optimizer still holds them, but they have left the model.

Such an optimizer no longer trains the tensor, and no error says so. When the parameter leaves the
model, it is too early for a warning: many users make a new optimizer next, and the present ones can
be found only by a search through all objects. So the optimizer warns when it takes a step.
"""

from __future__ import annotations

import gc
import threading
import warnings
import weakref
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.weak import WeakTensorKeyDictionary

from constrained.parametrized.tensor_locations import parameters_at

_NAMED = 3


@dataclass
class _Stale:
    """The tensor that a parameter belonged to, and the optimizers that have warned already."""

    module: weakref.ref[nn.Module]
    name: str
    path: str
    warned: weakref.WeakSet[Optimizer] = field(default_factory=weakref.WeakSet[Optimizer])

    def missed_by(self, held: set[int]) -> list[str]:
        """Names of the trained parameters that the tensor has now, except for those in ``held``."""
        module = self.module()
        if module is None:
            return []
        prefix = self.path.removesuffix(self.name)
        return [
            prefix + name
            for name, p in parameters_at(module, self.name).items()
            if p.requires_grad and id(p) not in held
        ]


_stale_parameters: Any = WeakTensorKeyDictionary()

# No thread may add one while another iterates over them.
_lock = threading.RLock()

_checked: weakref.WeakKeyDictionary[Optimizer, tuple[int, int]] = weakref.WeakKeyDictionary()

_count = 0


def mark_stale(parameter: Tensor, module: nn.Module, name: str, path: str) -> None:
    """Let optimizers that hold a parameter warn when they step: it has just left its module.

    Args:
        parameter: was the tensor, or one of its originals.
        module: the owner of the tensor.
        name: the tensor's name there.
        path: the name of the tensor in the warning.
    """
    global _count
    if _count == 0:
        register_optimizer_step_pre_hook(_check_before_step)
    _count += 1
    with _lock:
        _stale_parameters[parameter] = _Stale(weakref.ref(module), name, path)


def _check_before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    del args, kwargs
    if torch.compiler.is_compiling() or not _stale_parameters:
        return
    # Checked once, until another parameter leaves or the optimizer is given more parameters.
    now = _count, sum(len(group["params"]) for group in optimizer.param_groups)
    if _checked.get(optimizer) == now:
        return
    _checked[optimizer] = now
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    left: list[str] = []
    missed: list[str] = []
    with _lock:
        candidates = list(_stale_parameters.items())
    for parameter, stale in candidates:
        if id(parameter) not in held or optimizer in stale.warned:
            continue
        names = stale.missed_by(held)
        if names and not _is_in_a_module(parameter):
            stale.warned.add(optimizer)
            left.append(stale.path)
            missed += names
    if left:
        left, missed = list(dict.fromkeys(left)), list(dict.fromkeys(missed))
        warnings.warn(
            f"This {type(optimizer).__name__} holds parameters that have left the model, of "
            f"{listed(left)}, and does not train {listed(missed)}: give the optimizer to the "
            "function that constrains or releases them, as in constrain(..., optimizer=optimizer), "
            "or make it afterwards.",
            stacklevel=3,
        )


def listed(names: list[str]) -> str:
    """The first few of some names, for a message."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(repr(name) for name in names[:_NAMED]) + more


def _is_in_a_module(parameter: Tensor) -> bool:
    """Whether any module has the parameter, its former owner or another one."""
    # This searches all objects, but only before a warning.
    return any(
        (owner.__dict__ if isinstance(owner, nn.Module) else owner).get("_parameters") is container
        for container in gc.get_referrers(parameter)
        if type(container) is dict
        for owner in gc.get_referrers(container)
        if isinstance(owner, (dict, nn.Module))
    )
