"""When the value of a parametrized tensor may be used again.

One evaluation serves every read until something that the value depends on has changed. A stored
value is compared with the world at each read, never invalidated by a notification that could be
missed:

* the tensors it was computed from must be the same objects, at the same version, with the same
  memory, contents and ``requires_grad``;
* the arguments of the constraints, the training flag and inference mode must be the same;
* a read that needs a gradient is never served by an evaluation that recorded none.

Where tensors do not mean what they say (tracing, ``torch.func``, forward-mode derivatives,
saved-tensor hooks such as those of activation checkpointing, dispatch modes), and where FSDP
swaps and writes the originals without a trace, values are neither stored nor reused.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from threading import get_ident
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor, nn

from constrained.constraint import is_autocast
from constrained.ground import Ground
from constrained.handed import HandedOut, can_be_watched, shares_memory
from constrained.replay import Kept, KeptArguments, KeptGraph, Pullback, replay
from constrained.seen import SeenTensor, is_dense
from constrained.torch_internals.modules import is_replica, torch_cache
from constrained.torch_internals.moments import is_bypassed, is_transformed, stream_of
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

    def settled(self, now: Sequence[SeenTensor]) -> tuple[Tensor | None, int | None]:
        """The value, where it is known, and the original that it is a copy of, if it is one."""
        ...

    def is_managed(self) -> bool:
        """Whether somebody swaps and writes these tensors without a trace."""
        ...

    def __call__(self) -> Tensor:
        """Evaluate, without looking at stored values."""
        ...


class ValueStore:
    """The stored values of one parametrized tensor, one for each thread."""

    __slots__ = ("_handed", "_looked", "_lost", "_recipe", "_values")

    def __init__(self) -> None:
        self._values: dict[int, _Stored] = {}
        self._handed: dict[int, HandedOut] = {}
        self._lost = False
        self._recipe: _Recipe | None = None
        self._looked: Sequence[SeenTensor] = ()

    def clear(self) -> None:
        """Forget all values, and with them the graphs that hold on to the originals."""
        self._values.clear()
        self._handed.clear()
        self._lost = False
        self._recipe, self._looked = None, ()

    def drop(self, *, stepped: bool = False) -> None:
        """Forget all values, but not that one of them was written.

        Args:
            stepped: the originals have new numbers, and nothing else is expected to change.
        """
        self._lost = self.is_lost()
        self._values.clear()
        self._handed.clear()
        if not stepped:
            self._recipe, self._looked = None, ()

    def look(self, originals: Sequence[Tensor]) -> list[SeenTensor] | None:
        """The originals as they are, if what happens to them can be seen.

        Some of their entries are noted where looking takes time.
        """
        known = {id(seen.tensor): seen for seen in self._looked}
        looked = []
        for t in originals:
            seen = known.get(id(t))
            seen = seen and seen.again()
            if not seen:
                if not _is_storable(t):
                    return None
                seen = SeenTensor(t)
                seen.mark()
            looked.append(seen)
        self._looked = looked
        return looked

    def is_unread(self) -> bool:
        """Whether nobody holds a value of the originals as they are, or wrote into one."""
        return not (self._values or self._handed or self._lost)

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
        bypassed = is_bypassed()
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
        self._values.pop(thread, None)
        return self._evaluate(on, thread)

    def _is_lost_in(self, thread: int) -> bool:
        handed = self._handed.get(thread)
        return handed is not None and handed.is_lost()

    def _raise(self, thread: int) -> NoReturn:
        self._lost = False
        self._values.pop(thread, None)
        self._handed.pop(thread, None)
        raise ValueWrittenError

    def _hand_out(self, on: Evaluated, thread: int) -> Tensor:
        """Evaluate for this reader only."""
        value = on()
        if not is_transformed() and can_be_watched(value, _sources(on)):
            if len(self._handed) > 1:
                self._bury()
            self._handed[thread] = HandedOut(value)
        return value

    def _evaluate(self, on: Evaluated, thread: int) -> Tensor:
        recipe = self._recipe
        ground = recipe and recipe.ground and recipe.ground.again(on.__dict__)
        if recipe is None or ground is None:
            on.look()
            if on.is_managed():
                return on()
            recipe = _Recipe(on)
            ground = recipe.ground
            self._recipe = recipe if recipe.is_pure and ground else None
        context = None if recipe.is_pure else active_context()
        if (context is None and not recipe.is_pure) or ground is None:
            return self._hand_out(on, thread)
        originals, evaluate = recipe.originals, recipe.evaluate
        trains = recipe.trains and _is_recording()
        # Another thread may write an original meanwhile, as an optimizer does. Then the value is
        # made of two versions, and the aliases have got new nodes, which the graph may not know:
        # it is computed again, but not for ever.
        for attempt in range(_ATTEMPTS if recipe.is_pure else 1):
            if attempt > 0:
                ground = Ground(on.watched())
            before = recipe.seen(ground)
            if trains and recipe.pullback and attempt < _ATTEMPTS - 1:
                inputs, (value, copied) = originals, on.settled(before)
                if value is None:
                    with torch.no_grad():
                        value = evaluate(*originals)
                kept: Kept = KeptArguments(value, evaluate, recipe.pullback, copied)
            else:
                # The graph starts at aliases of the originals: started at the originals, a hook on
                # one of them would run in the replay, and once more where the gradient arrives.
                inputs = [_alias(t) if trains and t.requires_grad else t for t in originals]
                value = on.settled(before)[0] if recipe.is_pure and not trains else None
                value = evaluate(*inputs) if value is None else value
                kept = KeptGraph(value, evaluate if recipe.is_pure else None, len(inputs))
            if not recipe.is_pure:
                # The evaluation may have moved a buffer; the originals were looked at before.
                ground = Ground(on.watched(), before)
            stored = _Stored(kept, inputs, originals, ground, context)
            if all(seen.is_untouched() for seen in before):
                self._keep(thread, stored)
                return stored.tracked if _is_recording() else stored.value.tensor
        # As it is, for this reader only: with the graph itself, not with a replay of it.
        return value

    def _keep(self, thread: int, stored: _Stored) -> None:
        if len(self._values) > 1:
            self._bury()
        self._values[thread] = stored

    def _bury(self) -> None:
        """Forget the values of threads that have ended, but not that one of them was written."""
        alive = {t.ident for t in threading.enumerate()}
        # Step by step, since other threads store theirs at the same time.
        for values in (self._values, self._handed):
            for dead in [t for t in list(values) if t not in alive]:
                value = values.pop(dead, None)
                self._lost = self._lost or (value is not None and value.is_lost())


class _Recipe:
    """How a value is evaluated, as long as nothing but the numbers in its ground changes.

    Attributes:
        ground: as it was when this was noted, if what happens to it can be seen.
        originals: the arguments of ``evaluate``.
        evaluate: gives the value.
        is_pure: whether the value depends on nothing but the ground.
        trains: whether some of it requires a gradient.
        pullback: how the gradient is had without a graph, if all of that is among the originals.
    """

    __slots__ = (
        "_places",
        "evaluate",
        "ground",
        "is_pure",
        "originals",
        "pullback",
        "trains",
    )

    def __init__(self, on: Evaluated) -> None:
        self.is_pure = on.is_pure()
        self.originals = on.originals()
        self.evaluate = on.evaluator()
        sources = _sources(on)
        trained = [t for t in sources if t.requires_grad]
        self.trains = bool(trained)
        self.pullback = None
        if self.is_pure and trained and _are_among(trained, self.originals):
            self.pullback = on.pullback()
        self.ground = Ground(on.watched()) if all(map(_is_storable, sources)) else None
        if self.ground:
            found = [seen.tensor for seen in self.ground.tensors()]
            # An original that is parametrized itself is computed, and no part of the ground.
            self._places = [
                next((i for i, t in enumerate(found) if t is original), None)
                for original in self.originals
            ]

    def seen(self, ground: Ground) -> list[SeenTensor]:
        """The originals, as the ground has them."""
        tensors = ground.tensors()
        return [
            SeenTensor(original) if i is None else tensors[i]
            for i, original in zip(self._places, self.originals, strict=True)
        ]


class _Stored:
    """A value, and everything that must still be so for it to be valid.

    Attributes:
        value: without a graph.
        tracked: with the graph, where one was recorded.
        node: the end of that graph, which somebody may cut off by ``detach_()``.
        records: whether a read that records gradients may be served.
    """

    __slots__ = (
        "_context",
        "_ground",
        "_inference",
        "_is_source",
        "_kept",
        "_surroundings",
        "node",
        "records",
        "tracked",
        "value",
    )

    def __init__(
        self,
        kept: Kept,
        inputs: Sequence[Tensor],
        originals: Sequence[Tensor],
        ground: Ground,
        context: object | None,
    ) -> None:
        self.value = SeenTensor(kept.value.detach())
        self._kept = kept
        self._ground = ground
        sources = ground.tensors()
        differentiable = [seen.tensor for seen in sources if seen.requires_grad]
        # A constraint may hand out its argument: then a write is a write of the original.
        self._is_source = shares_memory(kept.value, [seen.tensor for seen in sources])
        self.records = torch.is_grad_enabled() or not differentiable
        self.tracked = self.value.tensor
        if kept.value.requires_grad or isinstance(kept, KeptArguments):
            # Those of a constraint's own.
            more = [t for t in differentiable if not any(t is x for x in originals)]
            kept.sources = sources
            self.tracked = replay(kept, *inputs, *more)
        self.node = self.tracked.grad_fn
        self._context = context
        self._inference = torch.is_inference_mode_enabled()
        self._surroundings = self._look_around()

    def is_valid(self, on: Evaluated) -> bool:
        """Whether the value is what an evaluation would give now."""
        if self._inference is not _is_inference() or self._kept.is_spent:
            return False
        if self._surroundings is not None and self._surroundings != self._look_around():
            return False
        return self._ground.is_unchanged(on.__dict__)

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
            served = self.value.tensor
            if served.requires_grad:
                return None
        # This is most of what a read takes: what else there are functions for is spelled out.
        value = self.value
        tensor = value.tensor
        if (
            is_bypassed()
            or self._inference is not _is_inference()
            or self._kept.is_spent
            or (self._surroundings is not None and self._surroundings != self._look_around())
            or self.tracked.data_ptr() != value.address
            or tensor.data_ptr() != value.address
            or (value.version is not None and value.version != version(tensor))
            or (value.look and value.entries != value.look())
            or not self._ground.is_unchanged(on.__dict__)
        ):
            return None
        return served

    def is_written(self) -> bool:
        """Whether somebody wrote into the value, or put other numbers in its place."""
        return (
            self.tracked.data_ptr() != self.value.address
            or self.value.tensor.data_ptr() != self.value.address
            or not self.value.is_untouched()
        )

    def is_lost(self) -> bool:
        """Whether somebody did so without autograd recording it."""
        if self._is_source or self.value.is_moved() or not self.is_written():
            return False
        return self.tracked.grad_fn is self.node and not self.value.tensor.requires_grad

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


def _is_storable(tensor: Tensor) -> bool:
    """Whether what happens to a tensor can be seen."""
    return (
        type(tensor) in (Tensor, torch.nn.Parameter)
        and tensor.layout is torch.strided
        and tensor.is_leaf
        and not tensor.is_meta
        and not tensor.is_inference()
        and is_dense(tensor)
        # Another process may write shared memory.
        and not (tensor.device.type == "cpu" and tensor.is_shared())
        and not (tensor.is_cuda and torch.cuda.is_current_stream_capturing())
    )
