"""When the value of a parametrized tensor may be used again.

One evaluation serves every read until something that the value depends on has changed: that is for
its fingerprint to say. What else must be so is the reader's: inference mode is the same, and a read
that needs a gradient is never served by an evaluation that recorded none.

Where tensors do not mean what they say (tracing, ``torch.func``, forward-mode derivatives, dispatch
modes), and where FSDP swaps and writes the originals without a trace, values are neither stored nor
reused. Saved-tensor hooks, such as those of activation checkpointing, see nothing of an evaluation:
a region that is run once more must save as much as it did before, whether it reads or evaluates.

A hook on the value (``module.weight.register_hook``) belongs to the parametrized tensor, as one on
a parameter does: each value calls those that were registered on the values before it. Their
dictionaries are kept by the store alone: what a node of autograd holds, the garbage collector does
not see, and a hook may well refer to its module.
"""

from __future__ import annotations

import threading
from threading import get_ident
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

from constrained.evaluation.backward import (
    Kept,
    KeptArguments,
    KeptGraph,
)
from constrained.evaluation.cached import active_context
from constrained.evaluation.evaluated_tensor import EvaluatedTensor
from constrained.evaluation.fingerprint import Fingerprint, Structure, UnwatchableError
from constrained.evaluation.inplace_writes import HandedOut, can_be_watched
from constrained.evaluation.recipe import Recipe, recipe_of
from constrained.evaluation.stored_value import StoredValue
from constrained.evaluation.value_hooks import ValueHooks
from constrained.torch_internals.modules import is_replica
from constrained.torch_internals.moments import (
    has_saving_hooks,
    is_traced,
    is_transformed,
)

# Each read of a value asks these.
_is_inference, _is_recording = torch.is_inference_mode_enabled, torch.is_grad_enabled


#: How often an evaluation is repeated that another thread has spoilt.
_ATTEMPTS = 4


class ValueWrittenError(RuntimeError):
    """A value that was handed out has been written in place; its owner says how to cure that."""


class Precomputed(NamedTuple):
    """A value that nobody has read yet.

    Attributes:
        value: without a graph.
        copied: which of the originals it is a copy of, if it is one.
        fingerprint: what it was computed from.
    """

    value: Tensor
    copied: int | None
    fingerprint: Fingerprint


class ValueStore:
    """The stored values of one parametrized tensor, one for each thread."""

    __slots__ = (
        *("__weakref__", "hooks", "_handed", "_lost", "_precomputed", "_recipe", "_values"),
    )

    def __init__(self) -> None:
        self._values: dict[int, StoredValue] = {}
        self._handed: dict[int, HandedOut] = {}
        self.hooks = ValueHooks(self._values)
        self._lost = False
        self._recipe: Recipe | None = None
        self._precomputed: Precomputed | None = None

    def clear(self) -> None:
        """Forget all values, and with them the graphs that hold on to the originals."""
        self._forget_values()
        self._handed.clear()
        self._lost = False
        self._recipe = self._precomputed = None

    def drop(self, *, stepped: bool = False) -> None:
        """Forget all values, but not that one of them was written.

        Args:
            stepped: the originals have new numbers, and nothing else is expected to change.
        """
        self._lost = self.is_lost()
        self._forget_values()
        self._handed.clear()
        self._precomputed = None
        if not stepped:
            self._recipe = None

    def _forget_values(self) -> None:
        for thread in list(self._values):
            self._pop(thread)

    def _pop(self, thread: int) -> StoredValue | None:
        """Forget the value of a thread, but not its hooks."""
        stored = self._values.pop(thread, None)
        if stored is not None and not torch.compiler.is_compiling():
            self.hooks.note(stored)
        return stored

    def recipe(self, on: EvaluatedTensor) -> Recipe | None:
        """How the value is evaluated; None if what happens to it can't be seen."""
        recipe = self._recipe
        if recipe is None or not recipe.structure.holds(on.__dict__):
            on.look()
            recipe = None if on.is_managed() else recipe_of(on)
            self._recipe = recipe if recipe and recipe.is_pure else None
        return recipe

    def precompute(self, on: EvaluatedTensor, value: Tensor, copied: int | None) -> None:
        """Take a value for the next reader, who may write into it.

        Args:
            on: the tensor.
            value: what an evaluation would give, without a graph, in memory of its own.
            copied: which of the originals it is a copy of, if it is one.
        """
        recipe = self.recipe(on)
        if recipe is not None and recipe.is_pure:
            fingerprint = recipe.look()
            for state in fingerprint.states:
                state.mark()
            self._precomputed = Precomputed(value, copied, fingerprint)

    def precomputed(self, on: EvaluatedTensor) -> Precomputed | None:
        """The value that nobody has read yet, if it is what an evaluation would give."""
        found = self._precomputed
        if found is not None and not found.fingerprint.holds(on.__dict__):
            self._precomputed = found = None
        return found

    def is_unread(self) -> bool:
        """Whether nobody has read, written or hooked a value of the originals as they are."""
        return not (self._values or self._handed or self._lost or self.hooks.wait())

    def is_lost(self) -> bool:
        """Whether a value that was handed out, in any thread, was written to no lasting effect."""
        return (
            self._lost
            or any(stored.is_lost() for stored in list(self._values.values()))
            or any(handed.is_lost() for handed in list(self._handed.values()))
        )

    def read(self, on: EvaluatedTensor) -> Tensor:
        """The value, evaluated only if something has changed since it was stored.

        Raises:
            ValueWrittenError: if the value was written in place after it was handed out, and
                autograd recorded nothing of it, or the written value would be handed out again.
        """
        thread = get_ident()
        stored = self._values.get(thread)
        if stored is not None and not self._handed and not self._lost:
            found = stored.read(on)
            if found is not None:
                return found
        return self._read_anew(on, thread, stored)

    def _read_anew(self, on: EvaluatedTensor, thread: int, stored: StoredValue | None) -> Tensor:
        # A replica of DataParallel shares the store, and has tensors of its own.
        if is_replica(on):
            return on()
        bypassed = is_transformed()
        if self._lost or (self._handed and self._is_lost_in(thread)):
            self._raise(thread)
        if stored is not None:
            if not stored.is_written():
                found = stored.read(on)
                if found is not None:
                    return found
            elif stored.is_lost() or (
                not bypassed and stored.is_valid(on) and not stored.value.is_moved()
            ):
                self._raise(thread)
        if bypassed:
            return self._hand_out(on, thread)
        self._pop(thread)
        return self._evaluate(on, thread)

    def _is_lost_in(self, thread: int) -> bool:
        handed = self._handed.get(thread)
        return handed is not None and handed.is_lost()

    def _raise(self, thread: int) -> NoReturn:
        self._lost = False
        self._pop(thread)
        self._handed.pop(thread, None)
        raise ValueWrittenError

    def _hand_out(self, on: EvaluatedTensor, thread: int) -> Tensor:
        """Evaluate for this reader only."""
        value = self._hooked(on)
        if not is_transformed() and can_be_watched(value, _sources(on)):
            if len(self._handed) > 1:
                self._bury()
            self._handed[thread] = HandedOut(value)
        return value

    def _hooked(self, on: EvaluatedTensor) -> Tensor:
        """Evaluate, with hooks that last."""
        value = on()
        # What is traced calls no hooks.
        if on.is_pure() and not is_traced():
            # A constraint may hand out an original, whose own hooks are no hooks on the value.
            if value.is_leaf and value.requires_grad and _is_recording():
                value = _alias(value)
            self.hooks.pass_on(value, is_kept=False)
        return value

    def _evaluate(self, on: EvaluatedTensor, thread: int) -> Tensor:
        recipe = self.recipe(on)
        if recipe is None:
            return self._hooked(on) if on.is_managed() else self._hand_out(on, thread)
        context = None if recipe.is_pure else active_context()
        trains = recipe.trains and _is_recording()
        # What hooks would see of an evaluation is left out where it can be computed once more.
        is_watched = has_saving_hooks()
        pullback = recipe.pullback or (recipe.recomputation if is_watched else None)
        is_seen = is_watched and (not recipe.is_pure or (trains and pullback is None))
        if is_seen or (context is None and not recipe.is_pure):
            return self._hand_out(on, thread)
        originals, evaluate = recipe.originals, recipe.evaluate
        known = self.precomputed(on) if recipe.is_pure else None
        self._precomputed = None
        # Another thread may write an original meanwhile, as an optimizer does. Then the value is
        # made of two versions, and the aliases have got new nodes, which the graph may not know:
        # it is computed again, but not for ever.
        for attempt in range(_ATTEMPTS if recipe.is_pure else 1):
            fingerprint = known.fingerprint if known else recipe.look()
            value, copied = (known.value, known.copied) if known else (None, None)
            known = None
            if trains and pullback and attempt < _ATTEMPTS - 1:
                inputs = originals
                if value is None:
                    with torch.no_grad():
                        value = evaluate(*originals)
                kept: Kept = KeptArguments(value, evaluate, pullback, copied)
            else:
                # The graph starts at aliases of the originals: started at the originals, a hook on
                # one of them would run in the replay, and once more where the gradient arrives.
                inputs = [_alias(t) if trains and t.requires_grad else t for t in originals]
                value = evaluate(*inputs) if value is None or trains else value
                kept = KeptGraph(value, evaluate if recipe.is_pure else None, len(inputs))
            before = fingerprint.states if recipe.is_pure else recipe.of_originals(fingerprint)
            if not recipe.is_pure:
                # The evaluation may have moved a buffer; the originals were looked at before.
                try:
                    fingerprint = Fingerprint(Structure(on.watched(), lenient=True), before)
                except UnwatchableError:
                    break
            stored = StoredValue(kept, inputs, originals, fingerprint, context)
            if all(state.is_untouched() for state in before):
                self._keep(thread, stored)
                return stored.served()
        # As it is, for this reader only: with the graph itself, not with a replay of it.
        return value  # type: ignore[return-value]

    def _keep(self, thread: int, stored: StoredValue) -> None:
        if len(self._values) > 1:
            self._bury()
        if stored.is_pure:
            self.hooks.pass_on(stored.tracked, is_kept=True)
        self._values[thread] = stored

    def _bury(self) -> None:
        """Forget the values of threads that have ended, but not that one of them was written."""
        alive = {t.ident for t in threading.enumerate()}
        # Step by step, since other threads store theirs at the same time.
        for dead in {*list(self._values), *list(self._handed)} - alive:
            for value in (self._pop(dead), self._handed.pop(dead, None)):
                self._lost = self._lost or (value is not None and value.is_lost())


def _alias(tensor: Tensor) -> Tensor:
    # Its backward is the identity, for sparse gradients too.
    return torch.ops.aten.alias.default(tensor)


def _sources(on: EvaluatedTensor) -> list[Tensor]:
    return [
        tensor
        for module in on.watched()
        for tensors in (module._parameters, module._buffers)
        for tensor in tensors.values()
        if tensor is not None
    ]
