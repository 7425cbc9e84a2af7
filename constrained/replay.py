"""A graph that is kept aside, and differentiated any number of times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from constrained.constraint import autocast_disabled
from constrained.seen import SeenTensor


def replay(graph: KeptGraph, *inputs: Tensor) -> Tensor:
    """The value of a graph, whose gradient with respect to ``inputs`` goes through the graph."""
    return _Replay.apply(graph, *inputs)


class KeptGraph:
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
        self.sources: list[SeenTensor] = []
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
    def forward(ctx: Any, graph: KeptGraph, *inputs: Tensor) -> Tensor:
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
        # Called inside of an autocast region, backward would compute in low precision.
        with autocast_disabled(graph.value):
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
