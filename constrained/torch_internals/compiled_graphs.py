"""Values in graphs that ``torch.compile`` traces: one evaluation in each graph.

A compiled graph is made once and run often, so it cannot hold a stored value: each graph evaluates
for itself. But a second read in the same graph returns the value of the first. (Merging equal
operations later would not help: by then the backward pass differentiates each evaluation.) The
first value is remembered by the private tracer of Dynamo. If that is missing or has changed, each
read in a graph evaluates.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

import torch
from torch import Tensor, nn

from constrained.torch_internals.look_up import is_defined
from constrained.torch_internals.modes import in_transform
from constrained.torch_internals.tensors import version


def traced_value(parametrized: Any) -> Tensor:
    """The value while a graph is traced: evaluated at the first read in each graph.

    Args:
        parametrized: a `constrained.parametrize.ParametrizationList`.
    """
    if not torch.compiler.is_dynamo_compiling() or not _can_remember:
        return parametrized()
    from torch._dynamo.comptime import comptime

    # The tracer calls these functions. `_recall` sets `value` to that of an earlier read, if any.
    tensors, value = (*parametrized.originals(), *parametrized.buffers()), None
    comptime(_check)
    comptime(_recall)
    if value is None:
        value = parametrized()
        comptime(_remember)
    del tensors
    return value


_can_remember = is_defined("torch._dynamo.comptime.comptime")


def _cautious(step: Callable[[Any], None]) -> Callable[[Any], None]:
    """A step that does nothing if it fails, as it may if this torch has another tracer."""

    @functools.wraps(step)
    def attempt(context: Any) -> None:
        with suppress(AttributeError, KeyError, LookupError, TypeError):
            step(context)

    return attempt


def _check(context: Any) -> None:
    # Eager code raises here if the value was written. The graph would not hold the write.
    with suppress(AttributeError, KeyError, LookupError):
        parametrized = _real(_tracer_of(context), "parametrized")
        parametrized.check_traced(parametrized.place())


@_cautious
def _recall(context: Any) -> None:
    tracer = _tracer_of(context)
    remembered = _memory(tracer).get(_real(tracer, "parametrized"))
    if remembered is None:
        return
    value, state = remembered
    if value.proxy.node._erased or state is None or state != _state(tracer, value):
        return
    tracer.symbolic_locals["value"] = value


@_cautious
def _remember(context: Any) -> None:
    tracer = _tracer_of(context)
    value = tracer.symbolic_locals["value"].realize()
    state = _state(tracer, value)
    if state is not None:
        _memory(tracer)[_real(tracer, "parametrized")] = value, state


def _tracer_of(context: Any) -> Any:
    return context._i_will_not_complain_if_bc_breaks_InstructionTranslator()


def _memory(tracer: Any) -> dict[nn.Module, tuple[Any, Any]]:
    """The values in the graph that is being traced, by their lists. The tracer holds them."""
    attributes = cast(dict[str, Any], vars(tracer.output.current_tracer))
    return attributes.setdefault("_constrained_values", {})


def _real(tracer: Any, name: str) -> Any:
    return tracer.symbolic_locals[name].realize().value


def _state(tracer: Any, value: Any) -> tuple[Any, ...] | None:
    """What must be the same when the value is used again; None if it must not be used again.

    The tensors of a graph that is traced are fake ones, which count writes.
    """
    parametrized = _real(tracer, "parametrized")
    inner = [p for m in list(parametrized.modules())[1:] for p in m._parameters]
    if inner or not parametrized.is_pure() or in_transform():
        return None
    graph = tracer.output.current_tracer.graph
    if any(graph.find_nodes(op="call_function", target=hides) for hides in _hide_writes()):
        return None
    tensors = [t.realize() for t in tracer.symbolic_locals["tensors"].realize().items]
    nodes = [t.proxy.node for t in (*tensors, value)]
    written = tuple((node, version(node.meta["example_value"])) for node in nodes)
    changed = {
        (id(item), name, id(new))
        for item, attributes in tracer.output.side_effects.store_attr_mutations.items()
        for name, new in attributes.items()
        if isinstance(getattr(item, "value", None), nn.Module)
    }
    return written, changed, torch.is_grad_enabled(), torch.is_inference_mode_enabled()


def _hide_writes() -> tuple[Any, ...]:
    """The operations of ``tensor.data``, and of setting it: writes by these are not counted."""
    c: Any = torch._C
    return c._autograd._get_data_attr, c.TensorBase.set_
