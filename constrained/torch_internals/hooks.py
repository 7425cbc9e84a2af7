"""The hooks that are registered on a tensor, and how another tensor can call them.

A hook on the value of a parametrized tensor outlives that value: the next value calls it. There is
no public way to list the hooks of a tensor. Without the private one, a hook ends with its value.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import register_multi_grad_hook

from constrained.torch_internals.look_up import find

Hook = Callable[[Tensor], Tensor | None]


def _given() -> Tensor:
    with torch.inference_mode(False), torch.enable_grad():
        return torch.ones((), requires_grad=True) * 2


def _same(gradient: Tensor) -> Tensor:
    return gradient


def _knows_hooks(_: Any) -> bool:
    first: Any = _given()
    second: Any = _given()
    with torch.inference_mode(False):
        handle: Any = first.register_hook(_same)
    if first._backward_hooks is None or second._backward_hooks is not None:
        return False
    handle.remove()
    _give(second, first._backward_hooks)
    # No backward pass is tried: after one, a forked process may fail in its own.
    return second._backward_hooks is first._backward_hooks and not second._backward_hooks


def _give(tensor: Any, hooks: Any) -> None:
    # As `Tensor.register_hook` does. The node will call all hooks that are in the dictionary then.
    tensor._backward_hooks = hooks
    tensor.grad_fn._register_hook_dict(tensor)


if find("torch.Tensor._backward_hooks", _knows_hooks) is not None:

    def hooks_of(tensor: Tensor) -> Any:
        """The dictionary of the hooks on a tensor; None if there is none yet."""
        return tensor._backward_hooks

    def call_first(tensor: Any, hook: Hook, own: OrderedDict[int, Hook]) -> None:
        """Let a tensor with a graph call a hook before those that are registered from now on.

        Args:
            tensor: whose gradient the hook is called with.
            hook: not in the dictionary that `hooks_of` gives.
            own: an empty dictionary, which `hooks_of` gives from now on.
        """
        _give(tensor, OrderedDict({0: hook}))
        _give(tensor, own)

else:

    def hooks_of(tensor: Tensor) -> Any:
        """None: hooks end with their tensor."""
        del tensor
        return None

    def call_first(tensor: Any, hook: Hook, own: OrderedDict[int, Hook]) -> None:
        """Do nothing: hooks end with their tensor."""
        del tensor, hook, own


def _code_of_many() -> Any:
    """The code of all hooks of ``register_multi_grad_hook`` in the mode "all"."""
    tensor = _given()
    with torch.inference_mode(False):
        register_multi_grad_hook([tensor], lambda _: None)
    hooks: dict[int, Any] = hooks_of(tensor) or {}
    return next((getattr(hook, "__code__", None) for hook in hooks.values()), None)


_of_many = _code_of_many()


def lasts(hook: Hook) -> bool:
    """Whether a hook may be called for another tensor than the one that it was registered on.

    A hook of `register_multi_grad_hook` may not, since it counts the nodes that call it. If its
    code is not known, every hook lasts.
    """
    return _of_many is None or getattr(hook, "__code__", None) is not _of_many
