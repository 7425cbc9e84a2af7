"""Hooks on the value of a parametrized tensor, which outlive each single value.

A hook on the value (``module.weight.register_hook``) belongs to the parametrized tensor, as one on
a parameter does: each value calls those that were registered on the values before it. Only this
file holds their dictionaries, and no node of autograd does: a hook may well refer to its module,
and the garbage collector does not find a cycle that leads through such a node.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from constrained.evaluation.inplace_writes import ReturnedValue
from constrained.torch_internals.hooks import Hook, call_first, hooks_of, lasts
from constrained.torch_internals.tensors import is_transformed

Hooks = OrderedDict[int, Hook]


class ValueHooks:
    """The hooks on all values of one parametrized tensor.

    Args:
        values: what was last returned to each thread, by their ids. Not copied.
    """

    __slots__ = ("__weakref__", "_known", "_values")

    def __init__(self, values: Mapping[int, ReturnedValue]) -> None:
        self._values = values
        # Dictionaries of hooks by their ids, with the value that each was made for.
        self._known: dict[int, tuple[weakref.ref[Tensor], Hooks]] = {}

    def note(self, returned: ReturnedValue) -> None:
        """Remember the hooks of a value that may be replaced by another one."""
        # The hooks on a tensor that was cut off from its graph stay with its reader. Those on the
        # value of a foreign module stay with that one value, as in torch.
        value = returned.tracked
        if returned.is_pure and value.grad_fn is returned.node:
            hooks = hooks_of(value)
            if hooks is not None:
                self._known[id(hooks)] = weakref.ref(value), hooks

    def has_lasting(self) -> bool:
        """Whether there are hooks on a value, in any thread, that the next value will call."""
        return any(map(_any_lasts, self._all()))

    def pass_on(self, value: Tensor, *, is_kept: bool) -> None:
        """Let a new value call the hooks on all others.

        Args:
            value: the new one.
            is_kept: whether `note` will be called with it when it is replaced.
        """
        if value.grad_fn is None or is_transformed(value) or torch.compiler.is_compiling():
            return
        self._drop_dead()
        if is_kept and not self._all():
            return
        # Autograd calls the hooks of this value by itself; `call` calls those of the others.
        own: Hooks = OrderedDict()
        self._known[id(own)] = weakref.ref(value), own
        call_first(value, partial(_call, weakref.ref(self), own), own)

    def call(self, gradient: Tensor, own: Hooks | None = None) -> Tensor:
        """Call all hooks that last, in the order of registration, and return the new gradient.

        Args:
            gradient: the gradient of a value.
            own: the hooks on this value, which are left to autograd.
        """
        # The keys are numbers that torch gives in the order of registration.
        hooks = {k: f for found in self._all() if found is not own for k, f in found.items()}
        for _, hook in sorted(hooks.items()):
            result = hook(gradient) if lasts(hook) else None
            gradient = gradient if result is None else result
        return gradient

    def _all(self) -> list[Hooks]:
        """All dictionaries of hooks, those of the present values of all threads included."""
        for value in list(self._values.values()):
            self.note(value)
        return [hooks for _, hooks in list(self._known.values())]

    def _drop_dead(self) -> None:
        """Drop dictionaries without a lasting hook, whose value is gone."""
        for key, (value, hooks) in list(self._known.items()):
            if value() is None and not _any_lasts(hooks):
                self._known.pop(key, None)


def _any_lasts(hooks: Hooks) -> bool:
    return any(map(lasts, list(hooks.values())))


def _call(found: weakref.ref[ValueHooks], own: Hooks, gradient: Tensor) -> Tensor:
    hooks = found()
    return gradient if hooks is None else hooks.call(gradient, own)
