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
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from threading import get_ident
from typing import Any, Protocol

import torch
import torch.distributed
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.graph import get_gradient_edge
from torch.nn.utils import parametrize as torch_parametrize

# Its stubs leave out what decides here.
_torch_c: Any = torch._C

#: A small tensor is compared entry by entry, a large one at this many places.
_SMALL, _PLACES = 1024, 32


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
    if torch_parametrize._cache_enabled:
        # Torch puts a fresh dictionary in place whenever its outermost context is left.
        return torch_parametrize._cache
    return next((block for block in _blocks.get() if block.is_open), None)


def is_bypassed() -> bool:
    """Whether this is a moment at which no value may be stored or reused."""
    return (
        _torch_c._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
        or _torch_c._get_tracing_state() is not None
        or _torch_c._autograd._top_saved_tensors_default_hooks(True) is not None
        or _torch_c._len_torch_dispatch_stack() > 0
    )


class ValueWrittenError(RuntimeError):
    """A value that was handed out has been written in place; its owner says how to cure that."""


class Evaluated(Protocol):
    """What a `ValueStore` asks of a parametrized tensor."""

    def watched(self) -> tuple[nn.Module, ...]:
        """The modules whose own parameters, buffers and arguments the value depends on."""
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
        thread = get_ident()
        stored = self._values.get(thread)
        if stored is not None and stored.is_valid(on.watched()):
            if not stored.value.is_untouched():
                del self._values[thread]
                raise ValueWrittenError
            if not torch.is_grad_enabled():
                return stored.value.tensor
            if stored.records:
                return stored.tracked
        self._values.pop(thread, None)
        return self._evaluate(on, thread)

    def _evaluate(self, on: Evaluated, thread: int) -> Tensor:
        is_pure = on.is_pure()
        context = None if is_pure else active_context()
        sources = _sources(on)
        if (context is None and not is_pure) or not all(map(_is_storable, sources)):
            return on.evaluator()(*on.originals())
        originals = on.originals()
        versions = [t._version for t in originals]
        records = torch.is_grad_enabled() and any(t.requires_grad for t in sources)
        # The graph starts at aliases of the originals: started at the originals, a hook on one of
        # them would run in the replay, and once more where the gradient arrives.
        inputs = [t.view_as(t) if records and t.requires_grad else t for t in originals]
        evaluate = on.evaluator()
        graph = _Graph(evaluate(*inputs), evaluate if is_pure else None)
        stored = _Stored(graph, inputs, originals, on.watched(), context)
        # The evaluation may have moved a buffer, so the sources are looked at after it; but an
        # original that was written meanwhile, by another thread, is not what was evaluated.
        if all(t._version == v for t, v in zip(originals, versions, strict=True)):
            if len(self._values) > 1:
                alive = {t.ident for t in threading.enumerate()}
                self._values = {t: v for t, v in self._values.items() if t in alive}
            self._values[thread] = stored
        return stored.tracked if torch.is_grad_enabled() else stored.value.tensor


class _Seen:
    """What a tensor looked like when a value was computed from it, or handed out.

    A version counter misses what is written through ``tensor.data``, as in hand-written steps and
    in the soft updates of target networks. So the memory of a tensor on the CPU is looked at too:
    all of a small tensor, a few entries, evenly spread, of a large one. On other devices that
    would mean to wait for the device, and some entries are compared once after each backward
    pass, where steps are made.
    """

    __slots__ = (
        "_address",
        "_entries",
        "_look",
        "_marks",
        "_version",
        "requires_grad",
        "tensor",
    )

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        # Inference tensors keep no count, and serve inference mode only.
        self._version = None if tensor.is_inference() else tensor._version
        self._address = tensor.data_ptr()
        self.requires_grad = tensor.requires_grad
        self._marks: Tensor | None = None
        self._look = _look_at_memory(tensor)
        self._entries = self._look and self._look()

    def is_unchanged(self, tensor: Tensor | None) -> bool:
        """Whether ``tensor`` is this one, and as it was."""
        return (
            tensor is not None
            and tensor is self.tensor
            and self._address == tensor.data_ptr()
            and self.requires_grad is tensor.requires_grad
            and (self._marks is None or self._compare_marks())
            and self.is_untouched()
        )

    def is_untouched(self) -> bool:
        """Whether nobody wrote into the tensor."""
        return (self._version is None or self._version == self.tensor._version) and (
            self._look is None or self._entries == self._look()
        )

    def mark(self) -> None:
        """Note some entries, after a backward pass, where memory cannot be looked at for free."""
        if self._look is None:
            self._marks = self._spread()

    def _compare_marks(self) -> bool:
        marks, self._marks = self._marks, None
        return torch.equal(marks, self._spread())  # type: ignore[arg-type]

    def _spread(self) -> Tensor:
        with torch.no_grad():
            flat = self.tensor.detach().reshape(-1)
            return flat[:: 1 + flat.numel() // _SMALL].clone()


def _look_at_memory(tensor: Tensor) -> Callable[[], bytes] | None:
    """A function that gives the bytes of some entries, for a dense tensor on the CPU."""
    if tensor.device.type != "cpu" or tensor.numel() == 0 or not _is_dense(tensor):
        return None
    if tensor.is_conj() or tensor.is_neg():
        return None
    # Strides do not matter here, nor do the numbers: the memory of any dense tensor is flat.
    flat = tensor.detach().as_strided((tensor.numel(),), (1,)).view(torch.uint8)
    entries = flat.numpy().view(f"V{tensor.element_size()}")
    step = 1 if tensor.numel() <= _SMALL else tensor.numel() // _PLACES
    return entries[::step].tobytes


def _is_dense(tensor: Tensor) -> bool:
    return torch.ops.aten.is_non_overlapping_and_dense.default(tensor)


class _Stored:
    """A value, and everything that must still be so for it to be valid.

    Attributes:
        value: without a graph.
        tracked: with the graph, where one was recorded.
        records: whether a read that records gradients may be served.
    """

    __slots__ = (
        "_context",
        "_graph",
        "_inference",
        "_surroundings",
        "_watched",
        "records",
        "tracked",
        "value",
    )

    def __init__(
        self,
        graph: _Graph,
        inputs: Sequence[Tensor],
        originals: Sequence[Tensor],
        watched: tuple[nn.Module, ...],
        context: object | None,
    ) -> None:
        self.value = _Seen(graph.value.detach())
        self._graph = graph
        self._watched = [_SeenModule(module) for module in watched]
        sources = [seen for module in self._watched for _, _, seen in module.tensors]
        differentiable = [seen.tensor for seen in sources if seen.requires_grad]
        self.records = torch.is_grad_enabled() or not differentiable
        self.tracked = self.value.tensor
        if graph.value.requires_grad:
            known = {id(t) for t in originals}
            more = [t for t in differentiable if id(t) not in known]
            graph.sources, graph.originals = sources, len(inputs)
            self.tracked = _Replay.apply(graph, *inputs, *more)
        self._context = context
        self._inference = torch.is_inference_mode_enabled()
        self._surroundings = self._look_around()

    def is_valid(self, watched: tuple[nn.Module, ...]) -> bool:
        """Whether the value is what an evaluation would give now."""
        if self._inference is not torch.is_inference_mode_enabled() or self._graph.is_spent:
            return False
        if self._surroundings is not None and self._surroundings != self._look_around():
            return False
        if len(watched) != len(self._watched):
            return False
        for module, seen in zip(watched, self._watched):  # noqa: B905
            if not seen.is_unchanged(module):
                return False
        return True

    def _look_around(self) -> tuple[Any, ...] | None:
        """What else an evaluation depends on: the stream of a device, the context it is stored in.

        A `Constraint` computes with autocast off; a foreign module heeds it.
        """
        device = self.value.tensor.device
        if self._context is None and device.type != "cuda":
            return None
        stream = device.type == "cuda" and _torch_c._cuda_getCurrentRawStream(device.index)
        if self._context is None:
            return (stream,)
        autocast = torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type)
        return stream, autocast, self._context is active_context()


class _SeenModule:
    """What a watched module looked like: its own tensors, training flag and arguments."""

    __slots__ = ("_buffers", "_parameters", "_revision", "_training", "tensors")

    def __init__(self, module: nn.Module) -> None:
        self._training = module.training
        self._revision = module.__dict__.get("_revision")
        self._parameters = len(module._parameters)
        self._buffers = len(module._buffers)
        self.tensors = [
            (container, name, _Seen(tensor))
            for container in ("_parameters", "_buffers")
            for name, tensor in module.__dict__[container].items()
            if tensor is not None
        ]

    def is_unchanged(self, module: nn.Module) -> bool:
        """Whether the module, standing where this one stood, is as it was."""
        now = module.__dict__
        if self._revision is not None:
            # A Constraint counts every attribute that is set, `training` among them.
            if now.get("_revision") != self._revision:
                return False
        elif (
            now["training"] is not self._training
            or len(now["_parameters"]) != self._parameters
            or len(now["_buffers"]) != self._buffers
        ):
            return False
        for container, name, seen in self.tensors:
            if not seen.is_unchanged(now[container].get(name)):
                return False
        return True


class _Graph:
    """The graph of an evaluation, kept aside from the graph that the value is used in.

    Attributes:
        value: the end of the graph.
        is_spent: whether it may have been freed.
        sources: what the evaluation depended on.
        originals: how many of the replay's inputs are arguments of the evaluation.
    """

    def __init__(self, value: Tensor, evaluate: Callable[..., Tensor] | None) -> None:
        self.value = value
        self.is_spent = False
        self.sources: list[_Seen] = []
        self.originals = 0
        self._evaluate = evaluate

    def differentiable(self, inputs: Sequence[Tensor]) -> Tensor:
        """The end of a graph that may be differentiated twice, and freed.

        A replay that is recorded leads through the graph that it replays, and who differentiates
        it frees that graph. So an evaluation that depends on nothing else is repeated. What a
        foreign module did cannot be repeated: its graph is given away.
        """
        if self._evaluate is None:
            self.is_spent = True
            return self.value
        if not all(seen.is_unchanged(seen.tensor) for seen in self.sources):
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an "
                "inplace operation: an original of a parametrized tensor was written between the "
                "forward pass and a backward pass with create_graph=True."
            )
        return self._evaluate(*inputs[: self.originals])


class _Replay(torch.autograd.Function):
    """Passes a gradient through a retained graph, any number of times.

    A value that is read in two losses is differentiated twice, and autograd frees the buffers of a
    graph after its first backward pass. So the graph of the evaluation is kept aside, hidden from
    autograd, and this node, which owns no buffers, replays it.
    """

    @staticmethod
    def forward(ctx: Any, graph: _Graph, *inputs: Tensor) -> Tensor:
        ctx.graph, ctx.inputs = graph, inputs
        # Noted now: an alias of a tensor that is written in place gets a new node, of which the
        # graph knows nothing.
        ctx.edges = [get_gradient_edge(x) if x.requires_grad else None for x in inputs]
        return graph.value.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        graph, inputs, needed = ctx.graph, ctx.inputs, ctx.needs_input_grad[1:]
        create_graph = torch.is_grad_enabled()
        for seen in graph.sources:
            seen.mark()
        found = iter(
            torch.autograd.grad(
                graph.differentiable(inputs) if create_graph else graph.value,
                [edge for edge, need in zip(ctx.edges, needed, strict=True) if need],
                gradients,
                retain_graph=True,
                create_graph=create_graph,
                allow_unused=True,
            )
        )
        return None, *(next(found) if need else None for need in needed)


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
        and _is_dense(tensor)
        # Another process may write shared memory, and FSDP writes gathered parameters without
        # moving their counters.
        and not (tensor.device.type == "cpu" and tensor.is_shared())
        and not (torch.distributed.is_available() and torch.distributed.is_initialized())
        and not (tensor.is_cuda and torch.cuda.is_current_stream_capturing())
    )
