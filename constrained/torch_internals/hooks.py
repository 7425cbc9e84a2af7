"""The hooks of a tensor that an operation gave, and how another such tensor gets them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from constrained.torch_internals.look_up import find


def _knows_hooks(_: Any) -> bool:
    with torch.inference_mode(False), torch.enable_grad():
        first = torch.ones((), requires_grad=True) * 2
        handle = first.register_hook(lambda gradient: gradient)
        second = torch.ones((), requires_grad=True) * 2
        if first._backward_hooks is None or second._backward_hooks is not None:
            return False
        _give(second, first._backward_hooks)
        handle.remove()
    # Not differentiated: a process that is forked after a backward pass may not be able to.
    return second._backward_hooks is first._backward_hooks and not second._backward_hooks


def _give(tensor: Any, hooks: Any) -> None:
    # As `Tensor.register_hook` does. The node calls what the dictionary holds when it runs.
    tensor._backward_hooks = hooks
    tensor.grad_fn._register_hook_dict(tensor)


if find("torch.Tensor._backward_hooks", _knows_hooks) is not None:

    def hooks_of(tensor: Tensor) -> Any:
        """The dictionary of what ``register_hook`` was given, if there is one; or None."""
        return tensor._backward_hooks

    def give_hooks(tensor: Tensor, hooks: Any) -> None:
        """Let a tensor that an operation gave call the hooks in a dictionary, beside its own.

        Whatever is registered on it from now on goes into this dictionary.
        """
        _give(tensor, hooks)

else:

    def hooks_of(tensor: Tensor) -> Any:
        """Nothing that is known: hooks end with their tensor."""
        del tensor
        return None

    def give_hooks(tensor: Tensor, hooks: Any) -> None:
        """Nothing: see above."""
        del tensor, hooks
