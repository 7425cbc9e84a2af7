"""Parameters that have left a model while an optimizer still holds them.

Such an optimizer trains nothing there, and nothing else would tell. Whether it will be used again
is not known when a parameter leaves: many a user makes a new optimizer next. It is known when the
optimizer takes a step, and there it warns, before the step. (At the time of leaving, moreover, the
live optimizers could be found only by a search through all objects of the process.)
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

from constrained.parametrized.locations import parameters_at

_NAMED = 3


@dataclass
class _Departure:
    """The place that a parameter has left, and the optimizers that have been told."""

    module: weakref.ref[nn.Module]
    name: str
    path: str
    told: weakref.WeakSet[Optimizer] = field(default_factory=weakref.WeakSet)

    def missed_by(self, held: set[int]) -> list[str]:
        """Names of what is trained at the place now, and not by who holds ``held``."""
        module = self.module()
        if module is None:
            return []
        prefix = self.path.removesuffix(self.name)
        return [
            prefix + name
            for name, p in parameters_at(module, self.name).items()
            if p.requires_grad and id(p) not in held
        ]


_departures: Any = WeakTensorKeyDictionary()

# What reads them all must not meet one that another thread adds.
_lock = threading.RLock()

_looked: weakref.WeakKeyDictionary[Optimizer, tuple[int, int]] = weakref.WeakKeyDictionary()

_count = 0


def mark_stale(parameter: Tensor, module: nn.Module, name: str, path: str) -> None:
    """Let optimizers that hold a parameter, which has just left its place, warn when they step.

    Args:
        parameter: what was, or belonged to, the tensor at the place.
        module: the owner of the tensor.
        name: the tensor's name there.
        path: how the warning calls it.
    """
    global _count
    if _count == 0:
        register_optimizer_step_pre_hook(_look_before_step)
    _count += 1
    with _lock:
        _departures[parameter] = _Departure(weakref.ref(module), name, path)


def _look_before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    del args, kwargs
    if torch.compiler.is_compiling() or not _departures:
        return
    # Look once: nothing changes unless something leaves or the optimizer is given something.
    now = _count, sum(len(group["params"]) for group in optimizer.param_groups)
    if _looked.get(optimizer) == now:
        return
    _looked[optimizer] = now
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    left: list[str] = []
    missed: list[str] = []
    with _lock:
        departures = list(_departures.items())
    for parameter, departure in departures:
        if id(parameter) not in held or optimizer in departure.told:
            continue
        names = departure.missed_by(held)
        if names and not _is_in_a_module(parameter):
            departure.told.add(optimizer)
            left.append(departure.path)
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
    """Names in a sentence, the first few of them."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(repr(name) for name in names[:_NAMED]) + more


def _is_in_a_module(parameter: Tensor) -> bool:
    """Whether a module has the parameter: its old owner again, or any other."""
    # A search through all objects, but only when there is something to warn of.
    return any(
        (owner.__dict__ if isinstance(owner, nn.Module) else owner).get("_parameters") is container
        for container in gc.get_referrers(parameter)
        if type(container) is dict
        for owner in gc.get_referrers(container)
        if isinstance(owner, (dict, nn.Module))
    )
