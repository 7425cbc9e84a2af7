"""The values of one parametrized tensor: each read comes here, and reuses one or evaluates.

One evaluation serves every read until something that the value depends on has changed. Whether it
has is asked at each read: see `constrained.evaluation.fingerprint` for the modules and tensors, and
`constrained.evaluation.stored_value` for the rest.

Values are neither stored nor reused under tracing, ``torch.func``, forward-mode derivatives and
dispatch modes, where a tensor may stand for another one; nor where FSDP swaps and writes the
originals, which no counter shows. Saved-tensor hooks see nothing of an evaluation: activation
checkpointing runs a region a second time, which must save as many tensors as the first, whether a
read in it evaluates or finds the value stored.
"""

from __future__ import annotations

import threading
from threading import get_ident
from typing import NoReturn

import torch
from torch import Tensor

from constrained.atomic.undo import tensors_of
from constrained.evaluation.cached import active_context
from constrained.evaluation.evaluated_tensor import EvaluatedTensor
from constrained.evaluation.fingerprint import Fingerprint, UnwatchableError
from constrained.evaluation.inplace_writes import (
    EarlierValues,
    ReturnedValue,
    UnstoredValue,
    ValueWrittenError,
    writes_are_noticed,
)
from constrained.evaluation.recipe import Precomputed, Recipe, alias, recipe_of
from constrained.evaluation.stored_value import StoredValue
from constrained.evaluation.value_hooks import ValueHooks
from constrained.torch_internals.modes import has_saving_hooks, is_traced, is_transformed
from constrained.torch_internals.modules import is_replica

_is_recording = torch.is_grad_enabled

#: How often a value is evaluated at most if another thread writes an original meanwhile.
_ATTEMPTS = 4


class ValueStore:
    """The values of one parametrized tensor.

    Attributes:
        hooks: the hooks on all of its values.
    """

    __slots__ = ("__weakref__", "_earlier", "_is_lost", "_recipe", "_values", "hooks")

    def __init__(self) -> None:
        # The value that was last returned in each thread, by the thread's id.
        self._values: dict[int, ReturnedValue] = {}
        self.hooks = ValueHooks(self._values)
        # Whether somebody wrote into a value that has been dropped since.
        self._is_lost = False
        self._earlier = EarlierValues()
        self._recipe: Recipe | None = None

    def clear(self) -> None:
        """Drop all values, and forget whether one of them was written."""
        self._drop_values()
        self._is_lost, self._recipe = False, None

    def drop(self, *, stepped: bool = False) -> None:
        """Drop all values, but remember whether one of them was written.

        Args:
            stepped: only the numbers in the originals have changed: how to evaluate is kept.
        """
        self._is_lost = self.is_lost()
        self._drop_values()
        if not stepped:
            self._recipe = None
        elif self._recipe is not None:
            self._recipe.precomputed = None

    def _drop_values(self) -> None:
        for thread in list(self._values):
            self._pop(thread)

    def _pop(self, thread: int) -> ReturnedValue | None:
        """Drop the value of a thread, but keep its hooks."""
        value = self._values.pop(thread, None)
        if value is not None and not torch.compiler.is_compiling():
            self.hooks.note(value)
            if not value.is_alias:
                self._earlier.note(value)
        return value

    def recipe(self, on: EvaluatedTensor) -> Recipe | None:
        """How the value is evaluated; None if a change of what it depends on cannot be noticed."""
        recipe = self._recipe
        if recipe is None or not recipe.fingerprint.holds(on.__dict__, numbers=False):
            on.look()
            recipe = None if on.is_managed() else recipe_of(on)
            self._recipe = recipe if recipe and recipe.is_pure else None
        return recipe

    def precompute(self, on: EvaluatedTensor, value: Tensor, copied: int | None) -> None:
        """Store a value for the next reader, who may write into it.

        Args:
            on: the tensor.
            value: what an evaluation would give, without a graph, in memory of its own.
            copied: which of the originals it is a copy of, if it is one.
        """
        recipe = self.recipe(on)
        if recipe is not None and recipe.is_pure:
            fingerprint = recipe.fingerprint.renewed()
            for state in fingerprint.states:
                state.sum_on_device()
            recipe.precomputed = Precomputed(value, copied, fingerprint)

    def precomputed(self, on: EvaluatedTensor) -> Precomputed | None:
        """The value of `precompute`, if it is unread and an evaluation would give the same."""
        return None if self._recipe is None else self._recipe.known(on)

    def is_unread(self) -> bool:
        """Whether nobody has read, written or hooked the value of the present originals."""
        return not (self._values or self._is_lost or self.hooks.has_lasting())

    def is_lost(self) -> bool:
        """Whether a reader, in any thread, wrote into a value that will be evaluated anew."""
        return self._is_lost or any(value.is_lost() for value in list(self._values.values()))

    def take_written_earlier(self) -> bool:
        """Whether a value was written after another one had replaced it; asked once."""
        return self._earlier.take_written()

    def read(self, on: EvaluatedTensor) -> Tensor:
        """The value, evaluated only if something has changed since it was stored.

        Raises:
            ValueWrittenError: if the value that was returned before has been written in place, and
                autograd recorded nothing of it, or the written value would be returned again.
        """
        thread = get_ident()
        known = self._values.get(thread)
        if known is not None and not self._is_lost:
            try:
                found = known.read(on)
            except ValueWrittenError:
                self._raise(thread)
            if found is not None:
                return found
        # A replica of DataParallel shares the store, and has tensors of its own.
        if is_replica(on):
            return on()
        if self._is_lost or (known is not None and known.is_lost()):
            self._raise(thread)
        if is_transformed():
            return self._with_hooks(on)
        self._pop(thread)
        if self._earlier.take_written():
            on.warn_of_earlier_write()
        return self._evaluate(on, thread)

    def _raise(self, thread: int) -> NoReturn:
        self._is_lost = False
        self._pop(thread)
        raise ValueWrittenError

    def _unstored(self, on: EvaluatedTensor, thread: int) -> Tensor:
        """Evaluate for this reader only."""
        value = self._with_hooks(on)
        if writes_are_noticed(value, tensors_of(on.watched())):
            self._keep(thread, UnstoredValue(value))
        return value

    def _with_hooks(self, on: EvaluatedTensor) -> Tensor:
        """Evaluate, and let the value call the hooks on earlier values."""
        value = on()
        # A traced value calls no hooks.
        if on.is_pure() and not is_traced():
            # A constraint may return an original, whose own hooks are no hooks on the value.
            if value.is_leaf and value.requires_grad and _is_recording():
                value = alias(value)
            self.hooks.pass_on(value, is_kept=False)
        return value

    def _evaluate(self, on: EvaluatedTensor, thread: int) -> Tensor:
        recipe = self.recipe(on)
        if recipe is None:
            return self._with_hooks(on) if on.is_managed() else self._unstored(on, thread)
        context = None if recipe.is_pure else active_context()
        if context is None and not recipe.is_pure:
            return self._unstored(on, thread)
        trains = recipe.trains and _is_recording()
        pullback = recipe.pullback
        if has_saving_hooks():
            # They see nothing of an evaluation whose gradient is computed by another one.
            pullback = pullback or recipe.recomputation
            if not recipe.is_pure or (trains and pullback is None):
                return self._unstored(on, thread)
        known = recipe.known(on)
        recipe.precomputed = None
        # Another thread may write an original meanwhile, as an optimizer does. Then the value mixes
        # two versions, and the aliases have new nodes, to which the graph may not lead. So it is
        # evaluated again, but not for ever.
        left = _ATTEMPTS if recipe.is_pure else 1
        while True:
            left -= 1
            fingerprint = known.fingerprint if known else recipe.fingerprint.renewed()
            kept, inputs = recipe.evaluated(known, trains, pullback if left else None)
            known = None
            before = fingerprint.states
            if not recipe.is_pure:
                # The evaluation may have written a buffer: only the originals must be as before.
                before = recipe.of_originals(fingerprint)
                try:
                    fingerprint = Fingerprint.of(on.watched(), lenient=True).renewed(before)
                except UnwatchableError:
                    return kept.value
            stored = StoredValue(kept, inputs, recipe.originals, fingerprint, context)
            if all(state.is_unchanged() for state in before):
                self._keep(thread, stored)
                return stored.returned()
            if not left:
                # For this reader only: with the graph itself, not with a replay of it.
                return kept.value

    def _keep(self, thread: int, value: ReturnedValue) -> None:
        if len(self._values) > 1:
            self._drop_dead()
        if value.is_pure:
            self.hooks.pass_on(value.tracked, is_kept=True)
        self._values[thread] = value

    def _drop_dead(self) -> None:
        """Drop the values of threads that have ended, but remember whether one was written."""
        alive = {t.ident for t in threading.enumerate()}
        # Step by step, since other threads may store values at the same time.
        for dead in set(self._values) - alive:
            value = self._pop(dead)
            self._is_lost = self._is_lost or (value is not None and value.is_lost())
