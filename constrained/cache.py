"""When the value of a parametrized tensor may be used again.

One evaluation serves every read until something that the value depends on has changed. A stored
value is compared with the world at each read, never invalidated by a notification that could be
missed:

* the tensors it was computed from must be the same objects, at the same version, with the same
  memory and the same ``requires_grad``;
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

import torch
import torch.distributed
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.utils import parametrize as torch_parametrize

_context: ContextVar[object | None] = ContextVar("constrained_cached", default=None)

#: Entries of a tensor that are compared to notice a write behind its version counter.
_FINGERPRINT_ENTRIES = 256


@contextmanager
def cached() -> Generator[None]:
    """Inside, values of *all* parametrizations are reused, foreign modules included.

    Values of a `Constraint` are reused everywhere, with no context manager. A foreign
    ``nn.Module`` may be random or write state when it runs, so its value is reused only here,
    and only while nothing that it depends on changes. The context belongs to one thread or
    asyncio task; nested contexts share their values.
    """
    token = _context.set(_context.get() or object())
    try:
        yield
    finally:
        _context.reset(token)


def active_context() -> object | None:
    """The `cached` context that the caller is in, this module's or torch's; None outside."""
    if torch_parametrize._cache_enabled:
        # Torch puts a fresh dictionary in place whenever its outermost context is left.
        return torch_parametrize._cache
    return _context.get()


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
            if stored.was_written():
                del self._values[thread]
                raise ValueWrittenError
            if stored.records or not _must_record(on.originals()):
                return stored.read()
        self._values.pop(thread, None)
        context = active_context()
        originals = on.originals()
        if not ((context is not None or on.is_pure()) and all(map(_is_storable, on.sources()))):
            return on.evaluate(*originals)
        stored = _evaluate(on, originals, None if on.is_pure() else context)
        if len(self._values) > 1:
            alive = {t.ident for t in threading.enumerate()}
            self._values = {t: v for t, v in self._values.items() if t in alive}
        self._values[thread] = stored
        return stored.read()


class _Stored:
    """A value, and everything that must still be so for it to be valid."""

    __slots__ = (
        "context",
        "flags",
        "inference",
        "marks",
        "plain",
        "records",
        "sources",
        "tracked",
        "version",
    )

    def __init__(
        self,
        plain: Tensor,
        tracked: Tensor | None,
        records: bool,
        marks: _Marks,
        flags: tuple[Any, ...],
        context: object | None,
    ) -> None:
        self.plain = plain
        self.tracked = tracked
        self.records = records
        self.version = _version(plain)
        self.marks = marks
        self.sources = [(t, t._version, t.data_ptr(), t.requires_grad) for t in marks.sources]
        self.flags = flags
        self.context = context
        self.inference = torch.is_inference_mode_enabled()

    def is_valid(self, sources: Iterable[Tensor], flags: tuple[Any, ...]) -> bool:
        """Whether the value is what an evaluation would give now."""
        if (
            flags != self.flags
            or self.inference is not torch.is_inference_mode_enabled()
            or (self.context is not None and self.context is not active_context())
        ):
            return False
        known = iter(self.sources)
        for tensor in sources:
            same, version, address, requires_grad = next(known, _NOTHING)
            if (
                tensor is not same
                or tensor._version != version
                or tensor.data_ptr() != address
                or tensor.requires_grad is not requires_grad
            ):
                return False
        return next(known, None) is None and self.marks.still_hold()

    def was_written(self) -> bool:
        """Whether somebody wrote into the value in place."""
        return _version(self.plain) != self.version

    def read(self) -> Tensor:
        """The value, with its graph where a gradient is being recorded."""
        if self.tracked is not None and torch.is_grad_enabled():
            return self.tracked
        return self.plain


_NOTHING = (None, 0, 0, False)


class _Marks:
    """A look behind the version counters, once after each backward pass.

    A step written by hand as ``p.data -= lr * p.grad`` changes a tensor without moving its version
    counter. Such a step follows a backward pass; so that pass notes some entries of each source,
    and the first read after it compares them.
    """

    __slots__ = ("_seen", "sources")

    def __init__(self, sources: tuple[Tensor, ...]) -> None:
        self.sources = sources
        self._seen: list[Tensor] | None = None

    def set(self) -> None:
        self._seen = [_fingerprint(t) for t in self.sources]

    def still_hold(self) -> bool:
        if self._seen is None:
            return True
        seen, self._seen = self._seen, None
        return all(torch.equal(_fingerprint(t), s) for t, s in zip(self.sources, seen, strict=True))


def _fingerprint(tensor: Tensor) -> Tensor:
    with torch.no_grad():
        flat = tensor.detach().reshape(-1)
        return flat[:: 1 + flat.numel() // _FINGERPRINT_ENTRIES].clone()


class _Replay(torch.autograd.Function):
    """Passes a gradient through a retained graph, any number of times.

    A value that is read in two losses is differentiated twice, and autograd frees the buffers of a
    graph after its first backward pass. So the graph of the evaluation is kept aside, and this
    node, which owns no buffers, replays it. Where a differentiable gradient is asked for, the
    replay is recorded in its turn, so that derivatives of every order are those of the graph.
    """

    @staticmethod
    def forward(ctx: Any, marks: _Marks, graph: Tensor, *inputs: Tensor) -> Tensor:
        ctx.marks, ctx.graph, ctx.inputs = marks, graph, inputs
        return graph.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[2:]
        ctx.marks.set()
        found = iter(
            torch.autograd.grad(
                ctx.graph,
                [x for x, need in zip(ctx.inputs, needed, strict=True) if need],
                gradients[0],
                retain_graph=True,
                create_graph=torch.is_grad_enabled(),
                allow_unused=True,
            )
        )
        return None, None, *(next(found) if need else None for need in needed)


def _evaluate(on: Evaluated, originals: Sequence[Tensor], context: object | None) -> _Stored:
    records = _must_record(originals)
    # The graph starts at aliases of the originals: started at the originals, a hook on one of
    # them would run in the replay, and once more where the gradient arrives.
    inputs = [t.view_as(t) if records and t.requires_grad else t for t in originals]
    graph = on.evaluate(*inputs)
    # The sources are looked at after the evaluation, which may have moved a buffer.
    marks = _Marks(tuple(on.sources()))
    tracked = _Replay.apply(marks, graph, *inputs) if graph.requires_grad else None
    return _Stored(graph.detach(), tracked, records, marks, on.flags(), context)


def _version(value: Tensor) -> int:
    # Inference tensors keep no count, and serve inference mode only.
    return 0 if value.is_inference() else value._version


def _must_record(originals: Sequence[Tensor]) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in originals)


def _is_storable(tensor: Tensor) -> bool:
    """Whether the version counter of a tensor tells all that happens to it."""
    return (
        type(tensor) in (Tensor, torch.nn.Parameter)
        and tensor.layout is torch.strided
        and tensor.is_leaf
        and not tensor.is_meta
        and not tensor.is_inference()
        # Another process may write shared memory, and FSDP writes gathered parameters without
        # moving their counters.
        and not (tensor.device.type == "cpu" and tensor.is_shared())
        and not (torch.distributed.is_available() and torch.distributed.is_initialized())
        and not (tensor.is_cuda and torch.cuda.is_current_stream_capturing())
    )
