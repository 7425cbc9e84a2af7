"""When the value of a parametrized tensor may be used again.

One evaluation serves every read until something that the value depends on has changed. A stored
value is compared with the world at each read, never invalidated by a notification that could be
missed:

* the tensors it was computed from must be the same objects, at the same version, with the same
  memory, contents and ``requires_grad``;
* the arguments of the constraints, the training flag and inference mode must be the same;
* a read that needs a gradient is never served by an evaluation that recorded none.

Where tensors do not mean what they say (tracing, ``torch.func``, forward-mode derivatives,
saved-tensor hooks such as those of activation checkpointing, dispatch modes) values are neither
stored nor reused.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.utils import parametrize as torch_parametrize

#: A small tensor is compared entry by entry, a large one at this many places.
_SMALL, _PLACES = 1024, 32


class _Context:
    """One outermost `cached` block."""

    def __init__(self) -> None:
        self.depth = 0


_context: ContextVar[_Context | None] = ContextVar("constrained_cached", default=None)


@contextmanager
def cached() -> Generator[None]:
    """Inside, values of *all* parametrizations are reused, foreign modules included.

    Values of a `Constraint` are reused everywhere, with no context manager. A foreign
    ``nn.Module`` may be random or write state when it runs, so its value is reused only here,
    and only while nothing that it depends on changes. The context belongs to one thread or
    asyncio task; nested contexts share their values.
    """
    context = _context.get()
    if context is None or context.depth == 0:
        context = _Context()
        _context.set(context)
    context.depth += 1
    try:
        yield
    finally:
        # Counted, and not reset by a token: a generator may be left in another order than it was
        # entered, or in another context.
        context.depth -= 1


def active_context() -> object | None:
    """The `cached` context that the caller is in, this module's or torch's; None outside."""
    if torch_parametrize._cache_enabled:
        # Torch puts a fresh dictionary in place whenever its outermost context is left.
        return torch_parametrize._cache
    context = _context.get()
    return context if context is not None and context.depth else None


def is_bypassed() -> bool:
    """Whether this is a moment at which no value may be stored or reused."""
    return (
        torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
        or torch._C._get_tracing_state() is not None
        or torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
        or torch._C._len_torch_dispatch_stack() > 0
    )


class ValueWrittenError(RuntimeError):
    """A value that was handed out has been written in place; its owner says how to cure that."""


class Evaluated(Protocol):
    """What a `ValueStore` asks of a parametrized tensor."""

    def sources(self) -> Iterable[Tensor]:
        """All tensors that the value depends on."""

    def originals(self) -> Sequence[Tensor]:
        """The arguments of `evaluate`, a part of the sources."""

    def flags(self) -> tuple[Any, ...]:
        """Everything else that the value depends on, comparable by ``==``."""

    def evaluate(self, *originals: Tensor) -> Tensor:
        """Compute the value."""

    def is_pure(self) -> bool:
        """Whether the value depends on nothing else."""


class ValueStore:
    """The stored values of one parametrized tensor, one for each thread."""

    __slots__ = ("_values",)

    def __init__(self) -> None:
        self._values: dict[int, _Stored] = {}

    def clear(self) -> None:
        """Forget all values, and with them the graphs that hold on to the originals."""
        self._values.clear()

    def read(self, on: Evaluated) -> Tensor:
        """The value, evaluated only if something has changed since it was stored.

        Raises:
            ValueWrittenError: if the stored value was written in place after it was handed out.
        """
        thread = threading.get_ident()
        stored = self._values.get(thread)
        if stored is not None and stored.is_valid(on.sources(), on.flags()):
            if not stored.value.is_unchanged(stored.value.tensor):
                del self._values[thread]
                raise ValueWrittenError
            if stored.records or not _must_record(on.sources()):
                return stored.read()
        self._values.pop(thread, None)
        context = None if on.is_pure() else active_context()
        if (context is None and not on.is_pure()) or not all(map(_is_storable, on.sources())):
            return on.evaluate(*on.originals())
        stored, is_consistent = _evaluate(on, context)
        if is_consistent:
            if len(self._values) > 1:
                alive = {t.ident for t in threading.enumerate()}
                self._values = {t: v for t, v in self._values.items() if t in alive}
            self._values[thread] = stored
        return stored.read()


class _Seen:
    """What a tensor looked like when a value was computed from it, or handed out.

    A version counter misses what is written through ``tensor.data``, as in hand-written steps and
    in the soft updates of target networks. So the memory of a tensor on the CPU is looked at too:
    all of a small tensor, a few entries, evenly spread, of a large one. On other devices that
    would mean to wait for the device, and some entries are compared once after each backward
    pass, where steps are made.
    """

    __slots__ = ("_entries", "_marks", "_sample", "address", "requires_grad", "tensor", "version")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.version = _version(tensor)
        self.address = tensor.data_ptr()
        self.requires_grad = tensor.requires_grad
        self._marks: Tensor | None = None
        self._sample = _memory(tensor) if tensor.device.type == "cpu" and _is_dense(tensor) else None
        self._entries = None if self._sample is None else self._sample.tobytes()

    def is_unchanged(self, tensor: Tensor) -> bool:
        """Whether ``tensor`` is this one, and as it was."""
        return (
            tensor is self.tensor
            and _version(tensor) == self.version
            and tensor.data_ptr() == self.address
            and tensor.requires_grad is self.requires_grad
            and (self._sample is None or self._sample.tobytes() == self._entries)
            and (self._marks is None or self._compare_marks())
        )

    def mark(self) -> None:
        """Note some entries, after a backward pass, where memory cannot be looked at for free."""
        if self._sample is None:
            self._marks = self._spread()

    def _compare_marks(self) -> bool:
        marks, self._marks = self._marks, None
        return torch.equal(marks, self._spread())  # type: ignore[arg-type]

    def _spread(self) -> Tensor:
        with torch.no_grad():
            flat = self.tensor.detach().reshape(-1)
            return flat[:: 1 + flat.numel() // _SMALL].clone()


def _memory(tensor: Tensor) -> np.ndarray:
    """A view of entries of a dense tensor, whose bytes tell whether it was written."""
    # Strides do not matter here, nor do the numbers: the memory of any dense tensor is flat.
    flat = tensor.detach().as_strided((tensor.numel(),), (1,))
    step = 1 if tensor.numel() <= _SMALL else tensor.numel() // _PLACES
    return torch.view_as_real(flat[::step]).numpy() if flat.is_complex() else _numpy(flat[::step])


def _is_dense(tensor: Tensor) -> bool:
    return torch.ops.aten.is_non_overlapping_and_dense.default(tensor)


def _numpy(flat: Tensor) -> np.ndarray:
    same_size = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return flat.view(same_size[flat.element_size()]).numpy()


class _Stored:
    """A value, and everything that must still be so for it to be valid."""

    __slots__ = ("_surroundings", "context", "flags", "records", "sources", "tracked", "value")

    def __init__(
        self,
        plain: Tensor,
        tracked: Tensor | None,
        records: bool,
        sources: list[_Seen],
        flags: tuple[Any, ...],
        context: object | None,
    ) -> None:
        self.value = _Seen(plain)
        self.tracked = tracked
        self.records = records
        self.sources = sources
        self.flags = flags
        self.context = context
        self._surroundings = _surroundings(plain, context)

    def is_valid(self, sources: Iterable[Tensor], flags: tuple[Any, ...]) -> bool:
        """Whether the value is what an evaluation would give now."""
        if (
            flags != self.flags
            or (self.context is not None and self.context is not active_context())
            or _surroundings(self.value.tensor, self.context) != self._surroundings
        ):
            return False
        known = iter(self.sources)
        for tensor in sources:
            seen = next(known, None)
            if seen is None or not seen.is_unchanged(tensor):
                return False
        return next(known, None) is None

    def read(self) -> Tensor:
        """The value, with its graph where a gradient is being recorded."""
        if self.tracked is not None and torch.is_grad_enabled():
            return self.tracked
        return self.value.tensor


def _surroundings(value: Tensor, context: object | None) -> tuple[Any, ...]:
    """The global state that an evaluation depends on."""
    stream = (
        torch._C._cuda_getCurrentRawStream(value.device.index)
        if value.device.type == "cuda"
        else None
    )
    if context is None:
        return torch.is_inference_mode_enabled(), stream
    # A `Constraint` computes with autocast off; a foreign module heeds it.
    device = value.device.type
    autocast = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
    return torch.is_inference_mode_enabled(), stream, autocast


class _Replay(torch.autograd.Function):
    """Passes a gradient through a retained graph, any number of times.

    A value that is read in two losses is differentiated twice, and autograd frees the buffers of a
    graph after its first backward pass. So the graph of the evaluation is kept aside, hidden from
    autograd, and this node, which owns no buffers, replays it. Where a differentiable gradient is
    asked for, the replay is recorded in its turn, so that derivatives of every order are those of
    the graph.
    """

    @staticmethod
    def forward(ctx: Any, graph: list[Tensor], sources: list[_Seen], *inputs: Tensor) -> Tensor:
        ctx.graph, ctx.sources, ctx.inputs = graph, sources, inputs
        return graph[0].detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[2:]
        for seen in ctx.sources:
            seen.mark()
        found = iter(
            torch.autograd.grad(
                ctx.graph,
                [x for x, need in zip(ctx.inputs, needed, strict=True) if need],
                gradients,
                retain_graph=True,
                create_graph=torch.is_grad_enabled(),
                allow_unused=True,
            )
        )
        return None, None, *(next(found) if need else None for need in needed)


def _evaluate(on: Evaluated, context: object | None) -> tuple[_Stored, bool]:
    """Evaluate, and tell whether the result belongs to the sources as they are."""
    originals = on.originals()
    versions = [_version(t) for t in originals]
    records = _must_record(on.sources())
    # The graph starts at aliases of the originals: started at the originals, a hook on one of
    # them would run in the replay, and once more where the gradient arrives.
    inputs = [t.view_as(t) if records and t.requires_grad else t for t in originals]
    graph = on.evaluate(*inputs)
    # The evaluation may have moved a buffer, so the sources are looked at after it; but an
    # original that was written meanwhile, by another thread, is not what was evaluated.
    is_consistent = all(_version(t) == v for t, v in zip(originals, versions, strict=True))
    sources = [_Seen(t) for t in on.sources()]
    tracked = None
    if graph.requires_grad:
        known = {id(t) for t in originals}
        more = [s.tensor for s in sources if s.requires_grad and id(s.tensor) not in known]
        tracked = _Replay.apply([graph], sources, *inputs, *more)
    return _Stored(graph.detach(), tracked, records, sources, on.flags(), context), is_consistent


def _must_record(sources: Iterable[Tensor]) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in sources)


def _version(tensor: Tensor) -> int:
    # Inference tensors keep no count, and serve inference mode only.
    return 0 if tensor.is_inference() else tensor._version


def _is_storable(tensor: Tensor) -> bool:
    """Whether what happens to a tensor can be seen."""
    return (
        type(tensor) in (Tensor, torch.nn.Parameter)
        and tensor.layout is torch.strided
        and tensor.is_leaf
        and not tensor.is_meta
        and not tensor.is_inference()
        and _is_dense(tensor)
        # Another process may write shared memory, and FSDP writes gathered parameters without
        # moving their counters.
        and not (tensor.device.type == "cpu" and tensor.is_shared())
        and not (torch.distributed.is_available() and torch.distributed.is_initialized())
        and not (tensor.is_cuda and torch.cuda.is_current_stream_capturing())
    )
