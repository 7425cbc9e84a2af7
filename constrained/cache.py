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
import weakref
from collections import OrderedDict
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from threading import get_ident
from typing import Any, NamedTuple, NoReturn, Protocol

import torch
from torch import Tensor, nn

from constrained.constraint import is_autocast
from constrained.fingerprint import Fingerprint, Structure, TensorState, UnwatchableError
from constrained.handed import HandedOut, can_be_watched, shares_memory
from constrained.replay import Kept, KeptArguments, KeptGraph, Pullback, recomputing, replay
from constrained.torch_internals.hooks import Hook, call_first, hooks_of, lasts
from constrained.torch_internals.modules import is_replica, torch_cache
from constrained.torch_internals.moments import (
    has_saving_hooks,
    is_traced,
    is_transformed,
    stream_of,
    unseen,
)
from constrained.torch_internals.tensors import is_transformed as is_of_transform
from constrained.torch_internals.tensors import version

# Each read of a value asks these.
_is_inference, _is_recording = torch.is_inference_mode_enabled, torch.is_grad_enabled

#: How often an evaluation is repeated that another thread has spoilt.
_ATTEMPTS = 4


class _Block:
    """One ``with cached():`` that has been entered."""

    __slots__ = ("is_open",)

    def __init__(self) -> None:
        self.is_open = True


_blocks: ContextVar[tuple[_Block, ...]] = ContextVar("constrained_cached", default=())


@contextmanager
def cached() -> Generator[None]:
    """Inside, values of *all* parametrizations are reused, foreign modules included.

    Values of a `Constraint` are reused everywhere, with no context manager. A foreign
    ``nn.Module`` may be random or write state when it runs, so its value is reused only here,
    and only while nothing that it depends on changes. The context belongs to one thread or
    asyncio task; nested contexts share their values.
    """
    block = _Block()
    _blocks.set((*_blocks.get(), block))
    try:
        yield
    finally:
        # Closed, and not reset by a token: a task inherits the blocks that it was started in, and
        # a generator may be left in another order than it was entered, or in another context.
        block.is_open = False
        _blocks.set(tuple(b for b in _blocks.get() if b.is_open))


def active_context() -> object | None:
    """The outermost `cached` block that the caller is in, or torch's; None outside."""
    theirs = torch_cache()
    if theirs is not None:
        return theirs
    return next((block for block in _blocks.get() if block.is_open), None)


class ValueWrittenError(RuntimeError):
    """A value that was handed out has been written in place; its owner says how to cure that."""


class Evaluated(Protocol):
    """What a `ValueStore` asks of a parametrized tensor."""

    def watched(self) -> tuple[nn.Module, ...]:
        """This object and all other modules whose tensors and arguments the value depends on."""
        ...

    def look(self) -> None:
        """Look anew at which modules these are."""
        ...

    def originals(self) -> Sequence[Tensor]:
        """The arguments of the `evaluator`, among the tensors of the watched modules."""
        ...

    def evaluator(self) -> Callable[..., Tensor]:
        """A function from the originals to the value, which does not hold on to this object."""
        ...

    def is_pure(self) -> bool:
        """Whether the value depends on nothing else."""
        ...

    def pullback(self) -> Pullback | None:
        """How the gradient is had from the value and the originals, where no graph is needed."""
        ...

    def is_managed(self) -> bool:
        """Whether somebody swaps and writes these tensors without a trace."""
        ...

    def __call__(self) -> Tensor:
        """Evaluate, without looking at stored values."""
        ...


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
        *("__weakref__", "_handed", "_hooks", "_lost", "_precomputed", "_recipe", "_values"),
    )

    def __init__(self) -> None:
        self._values: dict[int, _Stored] = {}
        self._handed: dict[int, HandedOut] = {}
        # Dictionaries of hooks by their ids, with the value that each was begun for.
        self._hooks: dict[int, tuple[weakref.ref[Tensor], OrderedDict[int, Hook]]] = {}
        self._lost = False
        self._recipe: _Recipe | None = None
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

    def _pop(self, thread: int) -> _Stored | None:
        """Forget the value of a thread, but not its hooks."""
        stored = self._values.pop(thread, None)
        if stored is not None and not torch.compiler.is_compiling():
            self._note_hooks(stored)
        return stored

    def _note_hooks(self, stored: _Stored) -> None:
        # Without its node the tensor is somebody's own, and what a foreign module gives has the
        # hooks that it has under torch.
        value = stored.tracked
        if stored.is_pure and value.grad_fn is stored.node:
            hooks = hooks_of(value)
            if hooks is not None:
                self._hooks[id(hooks)] = weakref.ref(value), hooks

    def _known_hooks(self) -> list[OrderedDict[int, Hook]]:
        """All dictionaries of hooks, those of the stored values of all threads included."""
        for stored in list(self._values.values()):
            self._note_hooks(stored)
        return [hooks for _, hooks in list(self._hooks.values())]

    def _forget_hooks(self) -> None:
        """Drop dictionaries without a lasting hook, whose value is gone."""
        for key, (value, hooks) in list(self._hooks.items()):
            if value() is None and not _any_lasts(hooks):
                self._hooks.pop(key, None)

    def _hook(self, value: Tensor, *, is_kept: bool) -> None:
        """Let a new value call the hooks of all others.

        Args:
            value: the new one.
            is_kept: whether it is looked at again, when it is replaced.
        """
        if value.grad_fn is None or is_of_transform(value) or torch.compiler.is_compiling():
            return
        self._forget_hooks()
        if is_kept and not self._known_hooks():
            return
        # The node of a value holds its own hooks only.
        own: OrderedDict[int, Hook] = OrderedDict()
        self._hooks[id(own)] = weakref.ref(value), own
        call_first(value, partial(_call_hooks, weakref.ref(self), own), own)

    def call_hooks(self, gradient: Tensor, own: OrderedDict[int, Hook] | None = None) -> Tensor:
        """What the hooks that last make of a gradient, in the order of their registration.

        Args:
            gradient: that of a value.
            own: the hooks that this value calls itself.
        """
        # The keys are numbers that torch gives in the order of registration.
        hooks = {
            k: f for found in self._known_hooks() if found is not own for k, f in found.items()
        }
        for _, hook in sorted(hooks.items()):
            result = hook(gradient) if lasts(hook) else None
            gradient = gradient if result is None else result
        return gradient

    def recipe(self, on: Evaluated) -> _Recipe | None:
        """How the value is evaluated; None if what happens to it can't be seen."""
        recipe = self._recipe
        if recipe is None or not recipe.structure.holds(on.__dict__):
            on.look()
            recipe = None if on.is_managed() else _recipe(on)
            self._recipe = recipe if recipe and recipe.is_pure else None
        return recipe

    def precompute(self, on: Evaluated, value: Tensor, copied: int | None) -> None:
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

    def precomputed(self, on: Evaluated) -> Precomputed | None:
        """The value that nobody has read yet, if it is what an evaluation would give."""
        found = self._precomputed
        if found is not None and not found.fingerprint.holds(on.__dict__):
            self._precomputed = found = None
        return found

    def is_unread(self) -> bool:
        """Whether nobody has read, written or hooked a value of the originals as they are."""
        return not (self._values or self._handed or self._lost or self.is_hooked())

    def is_hooked(self) -> bool:
        """Whether hooks on the value wait for its gradient, in any thread."""
        return any(_any_lasts(hooks) for hooks in self._known_hooks())

    def is_lost(self) -> bool:
        """Whether a value that was handed out, in any thread, was written to no lasting effect."""
        return (
            self._lost
            or any(stored.is_lost() for stored in list(self._values.values()))
            or any(handed.is_lost() for handed in list(self._handed.values()))
        )

    def read(self, on: Evaluated) -> Tensor:
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

    def _read_anew(self, on: Evaluated, thread: int, stored: _Stored | None) -> Tensor:
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

    def _hand_out(self, on: Evaluated, thread: int) -> Tensor:
        """Evaluate for this reader only."""
        value = self._hooked(on)
        if not is_transformed() and can_be_watched(value, _sources(on)):
            if len(self._handed) > 1:
                self._bury()
            self._handed[thread] = HandedOut(value)
        return value

    def _hooked(self, on: Evaluated) -> Tensor:
        """Evaluate, with hooks that last."""
        value = on()
        # What is traced calls no hooks.
        if on.is_pure() and not is_traced():
            # A constraint may hand out an original, whose own hooks are no hooks on the value.
            if value.is_leaf and value.requires_grad and _is_recording():
                value = _alias(value)
            self._hook(value, is_kept=False)
        return value

    def _evaluate(self, on: Evaluated, thread: int) -> Tensor:
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
            stored = _Stored(kept, inputs, originals, fingerprint, context)
            if all(state.is_untouched() for state in before):
                self._keep(thread, stored)
                return stored.served()
        # As it is, for this reader only: with the graph itself, not with a replay of it.
        return value  # type: ignore[return-value]

    def _keep(self, thread: int, stored: _Stored) -> None:
        if len(self._values) > 1:
            self._bury()
        if stored.is_pure:
            self._hook(stored.tracked, is_kept=True)
        self._values[thread] = stored

    def _bury(self) -> None:
        """Forget the values of threads that have ended, but not that one of them was written."""
        alive = {t.ident for t in threading.enumerate()}
        # Step by step, since other threads store theirs at the same time.
        for dead in {*list(self._values), *list(self._handed)} - alive:
            for value in (self._pop(dead), self._handed.pop(dead, None)):
                self._lost = self._lost or (value is not None and value.is_lost())


class _Recipe:
    """How a value is evaluated, as long as nothing but the numbers in its tensors changes.

    Attributes:
        structure: of the modules that the value depends on.
        originals: the arguments of ``evaluate``.
        evaluate: gives the value.
        is_pure: whether the value depends on nothing but the structure and its tensors.
        trains: whether some of it requires a gradient.
        pullback: how the gradient is had without a graph, if all of that is among the originals.
        recomputation: the same by one more evaluation.
    """

    __slots__ = (
        *("_latest", "evaluate", "is_pure", "originals", "pullback", "recomputation"),
        *("structure", "trains"),
    )

    def __init__(self, on: Evaluated, structure: Structure) -> None:
        self.structure = structure
        self.is_pure = on.is_pure()
        self.originals = on.originals()
        self.evaluate = on.evaluator()
        trained = [t for t in structure.tensors if t.requires_grad]
        self.trains = bool(trained)
        self.pullback = self.recomputation = None
        if self.is_pure and trained and _are_among(trained, self.originals):
            self.pullback = on.pullback()
            self.recomputation = recomputing(self.evaluate, self.originals)
        self._latest: Fingerprint | None = None

    def look(self) -> Fingerprint:
        """What the value would be computed from now."""
        latest = self._latest
        self._latest = latest.renewed() if latest else Fingerprint(self.structure)
        return self._latest

    def of_originals(self, fingerprint: Fingerprint) -> list[TensorState]:
        """What the originals were; one that is parametrized itself is computed, and none."""
        return [s for s in fingerprint.states if any(s.tensor is t for t in self.originals)]


def _recipe(on: Evaluated) -> _Recipe | None:
    try:
        return _Recipe(on, Structure(on.watched(), lenient=not on.is_pure()))
    except UnwatchableError:
        return None


class _Stored:
    """A value, and everything that must still be so for it to be valid.

    Attributes:
        value: what it is; nobody gets this very tensor.
        plain: without a graph, once somebody has read it so.
        tracked: with the graph, where one was recorded.
        is_pure: whether evaluating again would give the same.
        node: the end of that graph, which somebody may cut off by ``detach_()``.
        records: whether a read that records gradients may be served.
    """

    __slots__ = (
        "_context",
        "_holds",
        "_inference",
        "_is_source",
        "_kept",
        "_surroundings",
        "is_pure",
        "node",
        "plain",
        "records",
        "tracked",
        "value",
    )

    def __init__(
        self,
        kept: Kept,
        inputs: Sequence[Tensor],
        originals: Sequence[Tensor],
        fingerprint: Fingerprint,
        context: object | None,
    ) -> None:
        self.value = TensorState(kept.value.detach())
        self._kept = kept
        self.is_pure = kept.is_repeatable
        self._holds = fingerprint.holds
        sources = fingerprint.states
        differentiable = [seen.tensor for seen in sources if seen.requires_grad]
        # A constraint may hand out its argument: then a write is a write of the original.
        self._is_source = shares_memory(kept.value, [seen.tensor for seen in sources])
        self.records = torch.is_grad_enabled() or not differentiable
        self.tracked = kept.value.detach()
        self.plain: Tensor | None = self.tracked
        # Where nothing is recorded, a value that requires a gradient is one of the originals.
        is_recorded = kept.value.requires_grad and _is_recording()
        if is_recorded or isinstance(kept, KeptArguments):
            # Those of a constraint's own.
            more = [t for t in differentiable if not any(t is x for x in originals)]
            kept.fingerprint, kept.state = fingerprint, self.value
            self.tracked, self.plain = replay(kept, *inputs, *more), None
        self.node = self.tracked.grad_fn
        self._context = context
        self._inference = torch.is_inference_mode_enabled()
        self._surroundings = self._look_around()

    def served(self) -> Tensor:
        """The tensor that is handed out in the present gradient mode."""
        if _is_recording():
            return self.tracked
        if self.plain is None:
            self.plain = self.value.tensor.detach()
        return self.plain

    def is_valid(self, on: Evaluated) -> bool:
        """Whether the value is what an evaluation would give now."""
        if self._inference is not _is_inference() or self._kept.is_spent:
            return False
        if self._surroundings is not None and self._surroundings != self._look_around():
            return False
        return self._holds(on.__dict__)

    def read(self, on: Evaluated) -> Tensor | None:
        """The value for the present gradient mode, if it may be served.

        It may not if it was written, if it is not what an evaluation would give, if it was not
        recorded and is to be, or was cut off from its graph, and where values are bypassed.
        """
        if _is_recording():
            served = self.tracked
            node = self.node
            if (
                not self.records
                or served.grad_fn is not node
                or (node is None and served.requires_grad)
            ):
                return None
        else:
            served = self.plain
            if served is not None and served.requires_grad:
                return None
        # This is most of what a read takes: what else there are functions for is spelled out.
        value = self.value
        if (
            is_transformed()
            or self._inference is not _is_inference()
            or self._kept.is_spent
            or (self._surroundings is not None and self._surroundings != self._look_around())
            or self.tracked.data_ptr() != value.address
            or (self.plain is not None and self.plain.data_ptr() != value.address)
            or (value.version is not None and value.version != version(value.tensor))
            or not value.matches()
            or not self._holds(on.__dict__)
        ):
            return None
        return self.served() if served is None else served

    def is_written(self) -> bool:
        """Whether somebody wrote into the value, or put other numbers in its place."""
        if not self.value.is_untouched():
            return True
        # The same numbers in other memory are no write: such is a change of the memory format.
        value = self.value.tensor
        handed_out = [t for t in (self.tracked, self.plain) if t is not None]
        address, is_ordinary = self.value.address, not is_transformed()
        # Not under a tracer, which would record the question for the size. Another shape with as
        # many entries is no write.
        moved = [
            t
            for t in handed_out
            if t.data_ptr() != address or (is_ordinary and t.numel() != value.numel())
        ]
        compare = _are_equal if is_ordinary else partial(unseen, _are_equal)
        return not all(compare(t, value) for t in moved)

    def is_lost(self) -> bool:
        """Whether somebody did so without autograd recording it."""
        if self._is_source or self.value.is_moved() or not self.is_written():
            return False
        return self.tracked.grad_fn is self.node and not (
            self.plain is not None and self.plain.requires_grad
        )

    def _look_around(self) -> tuple[Any, ...] | None:
        """What else an evaluation depends on: the stream of a device, the context it is stored in.

        A `Constraint` computes with autocast off; a foreign module heeds it.
        """
        tensor = self.value.tensor
        device = tensor.device
        if self._context is None and device.type != "cuda":
            return None
        stream = device.type == "cuda" and stream_of(device)
        if self._context is None:
            return (stream,)
        autocast = is_autocast(tensor) and torch.get_autocast_dtype(device.type)
        return stream, autocast, self._context is active_context()


def _any_lasts(hooks: OrderedDict[int, Hook]) -> bool:
    return any(map(lasts, list(hooks.values())))


def _call_hooks(
    store: weakref.ref[ValueStore], own: OrderedDict[int, Hook], gradient: Tensor
) -> Tensor:
    found = store()
    return gradient if found is None else found.call_hooks(gradient, own)


def _are_equal(tensor: Tensor, value: Tensor) -> bool:
    return tensor.shape == value.shape and torch.equal(tensor.detach(), value)


def _are_among(tensors: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return all(any(t is other for other in others) for t in tensors)


def _alias(tensor: Tensor) -> Tensor:
    # Its backward is the identity, for sparse gradients too.
    return torch.ops.aten.alias.default(tensor)


def _sources(on: Evaluated) -> list[Tensor]:
    return [
        tensor
        for module in on.watched()
        for tensors in (module._parameters, module._buffers)
        for tensor in tensors.values()
        if tensor is not None
    ]
