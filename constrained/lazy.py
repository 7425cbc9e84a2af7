"""Constraints on tensors that have no shape yet: they wait for the first forward pass.

The parameters of ``nn.LazyLinear`` and its like materialize then, or when a state dict is loaded;
but in either case it is before the first forward pass, in a hook, that torch makes the module one
of its final class. The hook here runs after that one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from constrained.constraint import Constraint
from constrained.spec import Request

Apply = Callable[[nn.Module, str, "Pending"], None]


@dataclass
class Pending:
    """A constraint that waits for its tensor.

    Attributes:
        path: of the tensor in the model, for messages.
        request: the constraint, and how the tensor is seen.
        init: what becomes of the tensor's first value.
        apply: a function of a module, a tensor's name and this, which constrains the tensor.
    """

    path: str
    request: Request
    init: str
    apply: Apply

    def spec(self) -> dict[str, Any]:
        """The constraint as plain data."""
        constraint = self.request.constraint
        data = constraint.spec() if isinstance(constraint, Constraint) else {}
        view = {"view": self.request.view} if self.request.view is not None else {}
        init = {"init": self.init} if self.init != "keep" else {}
        return {**data, **view, **self.request.sizes, **init}


@dataclass
class _Waiting:
    """The constraints that wait in one module, by the names of the tensors, and its hook."""

    handle: Any
    tensors: dict[str, Pending] = field(default_factory=dict)


def wait(module: nn.Module, name: str, pending: Pending) -> None:
    """Constrain a tensor in the first forward pass of its module."""
    waiting = _waiting(module)
    if waiting is None:
        waiting = _Waiting(module.register_forward_pre_hook(_before_forward))
        module.__dict__["_constraints_waiting"] = waiting
    waiting.tensors[name] = pending


def drop(module: nn.Module, name: str) -> None:
    """Let a constraint that waits go."""
    waiting = _waiting(module)
    if waiting is not None and waiting.tensors.pop(name, None) and not waiting.tensors:
        _leave(module, waiting)


def pending(module: nn.Module, name: str) -> Pending | None:
    """The constraint that waits for a tensor of a module, if there is one."""
    waiting = _waiting(module)
    return waiting.tensors.get(name) if waiting is not None else None


def all_pending(model: nn.Module) -> Iterator[tuple[str, Pending]]:
    """Each constraint in a model that waits for its tensor, with the tensor's path there."""
    for prefix, module in model.named_modules():
        waiting = _waiting(module)
        for name, found in waiting.tensors.items() if waiting is not None else ():
            yield f"{prefix}.{name}" if prefix else name, found


def _waiting(module: nn.Module) -> _Waiting | None:
    return module.__dict__.get("_constraints_waiting")


def _before_forward(module: nn.Module, args: Any) -> None:
    del args
    waiting = _waiting(module)
    if waiting is None or _is_lazy(module):
        return
    # One that fails goes on waiting: the next forward pass fails too, and none runs without it.
    for name, found in list(waiting.tensors.items()):
        found.apply(module, name, found)
        del waiting.tensors[name]
    _leave(module, waiting)


def _leave(module: nn.Module, waiting: _Waiting) -> None:
    waiting.handle.remove()
    del module.__dict__["_constraints_waiting"]


def _is_lazy(module: nn.Module) -> bool:
    tensors = (*module._parameters.values(), *module._buffers.values())
    return any(tensor is not None and is_lazy(tensor) for tensor in tensors)
