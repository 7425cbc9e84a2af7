"""The gradient of an evaluation whose value is read several times.

A value that is read in two losses is differentiated twice, and autograd frees the buffers of a
graph after its first backward pass. So what the gradient needs is kept where autograd does not
find it: the graph of the evaluation, or, if the constraint has a `pullback`, its arguments. What
autograd sees is one node (`replay`), which asks for the gradient in each backward pass.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from constrained.constraint.optional_methods import evaluated_again
from constrained.constraint.precision import autocast_disabled
from constrained.evaluation.events import expect_writes
from constrained.evaluation.fingerprint import Fingerprint
from constrained.evaluation.tensor_state import TensorState
from constrained.torch_internals.functions import direct
from constrained.torch_internals.tensors import is_batch

Evaluate = Callable[..., Tensor]

Pullback = Callable[..., tuple[Tensor | None, ...]]


def replay(kept: Kept, *inputs: Tensor) -> Tensor:
    """The value of an evaluation, which also computes its gradient with respect to ``inputs``."""
    # This is never called inside of a transform of torch.func.
    return direct(_Replay)(kept, *inputs)


def dense(gradient: Tensor) -> Tensor:
    """A gradient as a dense tensor. An embedding's may be sparse.

    Few constraints treat each row by itself, and fewer have derivatives for sparse tensors.
    """
    return gradient if gradient.layout is torch.strided else gradient.to_dense()


def with_dense_gradient(value: Tensor) -> Tensor:
    """The value, with a node in its graph that makes the gradient dense."""
    return direct(_Dense)(value)


class Kept(ABC):
    """An evaluation, kept apart from the graph that its value is used in.

    Attributes:
        value: what was evaluated.
        is_repeatable: whether evaluating again gives the same. A foreign module may be random.
        is_spent: whether the graph was given to autograd, which may have freed it.
        fingerprint: what the evaluation depended on.
        state: what the value was.
    """

    def __init__(self, value: Tensor, is_repeatable: bool) -> None:
        self.value = value
        self.is_repeatable = is_repeatable
        self.is_spent = False
        self.fingerprint: Fingerprint | None = None
        self.state: TensorState | None = None

    def note(self, inputs: Sequence[Tensor]) -> None:
        """Remember the inputs, as they are at the time of the evaluation."""
        self.inputs = inputs

    @abstractmethod
    def gradients(self, needed: Sequence[bool], gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients with respect to the inputs, without a graph of their own."""

    @abstractmethod
    def differentiable(self, needed: Sequence[bool], gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The same with a graph of their own, where gradients are recorded."""

    def _evaluate_again(self, evaluate: Evaluate, originals: int) -> Tensor:
        """The value with a new graph, which may be differentiated twice, and freed."""
        self._check()
        with torch.enable_grad():
            return evaluate(*self.inputs[:originals])

    def _check(self) -> None:
        if self.fingerprint is not None and not self.fingerprint.can_be_differentiated():
            raise written_since()


class KeptGraph(Kept):
    """An evaluation with its graph.

    Args:
        value: the end of the graph.
        evaluate: what gave it, if it may be repeated.
        originals: how many of the inputs are its arguments.
    """

    def __init__(self, value: Tensor, evaluate: Evaluate | None, originals: int) -> None:
        super().__init__(value, evaluate is not None)
        self._evaluate, self._originals = evaluate, originals

    _edges: list[Any]

    def note(self, inputs: Sequence[Tensor]) -> None:
        """Remember the inputs, and where the graph begins."""
        super().note(inputs)
        # Noted now: an alias that is written in place gets a new node, to which the graph does not
        # lead.
        self._edges = [get_gradient_edge(x) if x.requires_grad else None for x in inputs]

    def gradients(self, needed: Sequence[bool], gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Replay the graph, and keep it."""
        return self._replay(self.value, needed, gradient, create_graph=False)

    def differentiable(self, needed: Sequence[bool], gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Replay a graph such that the result can be differentiated once more.

        The graph of the result contains the graph that is replayed, and differentiating it frees
        both. So a repeatable evaluation is repeated. What a foreign module did cannot be repeated:
        its graph is given to autograd, and the value is not reused.
        """
        if self._evaluate is None:
            self.is_spent = True
            end = self.value
        else:
            end = self._evaluate_again(self._evaluate, self._originals)
        return self._replay(end, needed, gradient, create_graph=torch.is_grad_enabled())

    def _replay(
        self, end: Tensor, needed: Sequence[bool], gradient: Tensor, create_graph: bool
    ) -> tuple[Tensor | None, ...]:
        return gradients_of(end, self._edges, needed, gradient, create_graph, retain_graph=True)


class KeptArguments(Kept):
    """An evaluation whose gradient the constraint computes from the value and the arguments.

    Args:
        value: what was evaluated, without a graph.
        evaluate: what gave it.
        pullback: ``Constraint.pullback``.
        copied: which of the arguments the value is a copy of, and is used in the place of.
    """

    def __init__(
        self, value: Tensor, evaluate: Evaluate, pullback: Pullback, copied: int | None
    ) -> None:
        super().__init__(value, True)
        self._evaluate, self._pullback, self._copied = evaluate, pullback, copied

    def note(self, inputs: Sequence[Tensor]) -> None:
        """Remember the inputs, without their graphs too."""
        super().note(inputs)
        self._arguments = [x.detach() for x in inputs]

    def gradients(self, needed: Sequence[bool], gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Ask the constraint."""
        if self.state is not None and not self.state.is_unchanged():
            # Somebody has written into the value, and autograd may have recorded it.
            return self.differentiable(needed, gradient)
        self._check()
        arguments = list(self._arguments)
        if self._copied is not None:
            arguments[self._copied] = self.value
        return self._pullback(self.value, gradient, *arguments)

    def differentiable(self, needed: Sequence[bool], gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Evaluate once more, with a graph."""
        end = self._evaluate_again(self._evaluate, len(self.inputs))
        return gradients_of(end, self.inputs, needed, gradient, torch.is_grad_enabled())


def gradients_of(
    end: Tensor,
    inputs: Sequence[Any],
    needed: Sequence[bool],
    gradient: Tensor,
    create_graph: bool,
    retain_graph: bool | None = None,
) -> tuple[Tensor | None, ...]:
    """The gradients with respect to the inputs, or their edges, that are needed."""
    wanted = [x for x, need in zip(inputs, needed, strict=True) if need]
    found = iter(
        torch.autograd.grad(end, wanted, gradient, retain_graph, create_graph, allow_unused=True)
    )
    return tuple(next(found) if need else None for need in needed)


def recomputing(evaluate: Evaluate, originals: Sequence[Tensor]) -> Pullback:
    """A pullback by one more evaluation.

    Args:
        evaluate: gives the value of such originals.
        originals: the originals, to find out which require a gradient.
    """
    trained = [i for i, t in enumerate(originals) if t.requires_grad]

    def pullback(_: Tensor, gradient: Tensor, *params: Tensor) -> tuple[Tensor | None, ...]:
        return evaluated_again(evaluate, trained, gradient, params)

    return pullback


def written_since() -> RuntimeError:
    """The error for a gradient that is asked for after its arguments were written."""
    return RuntimeError(
        "one of the variables needed for gradient computation has been modified by an inplace "
        "operation: an original of a parametrized tensor was written, or an argument of its "
        "constraint was set, between the forward pass and the backward pass."
    )


class _Replay(torch.autograd.Function):
    """A node that saves no tensors, and gets its gradient from an evaluation that is kept."""

    @staticmethod
    def forward(ctx: Any, kept: Kept, *inputs: Tensor) -> Tensor:
        ctx.kept = kept
        kept.note(inputs)
        return kept.value.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        kept, needed = ctx.kept, ctx.needs_input_grad[1:]
        expect_writes()
        if kept.fingerprint is not None:
            for state in kept.fingerprint.states:
                state.sum_on_device()
        # Under vmap there are many gradients at once, for which only autograd has a rule.
        by_graph = torch.is_grad_enabled() or is_batch(gradients[0])
        ask = kept.differentiable if by_graph else kept.gradients
        # Inside of an autocast region a backward pass would compute in low precision.
        (gradient,) = gradients
        if kept.is_repeatable:
            gradient = dense(gradient)
        with autocast_disabled(kept.value):
            return None, *ask(needed, gradient)


class _Dense(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        del ctx
        return value.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        del ctx
        return dense(gradients[0])
