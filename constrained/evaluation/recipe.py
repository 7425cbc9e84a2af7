"""How a value is evaluated. It is found out once, and holds while nothing but numbers changes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from constrained.evaluation.backward import Kept, KeptArguments, KeptGraph, Pullback, recomputing
from constrained.evaluation.evaluated_tensor import EvaluatedTensor
from constrained.evaluation.fingerprint import Fingerprint, UnwatchableError
from constrained.evaluation.tensor_state import TensorState


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


class Recipe:
    """How a value is evaluated, as long as nothing but the numbers in its tensors changes.

    Args:
        on: the parametrized tensor.

    Attributes:
        fingerprint: what the value is computed from, but for these numbers.
        originals: the arguments of ``evaluate``.
        evaluate: gives the value.
        is_pure: whether the value depends on nothing but the fingerprint.
        trains: whether some of it requires a gradient.
        pullback: how the gradient is computed without a graph, if all that requires one is among
            the originals.
        recomputation: computes the same gradient by one more evaluation.
        precomputed: a value for the next reader, if there is one.

    Raises:
        UnwatchableError: if a change of what the value depends on cannot be noticed.
    """

    __slots__ = (
        *("evaluate", "fingerprint", "is_pure", "originals", "precomputed", "pullback"),
        *("recomputation", "trains"),
    )

    def __init__(self, on: EvaluatedTensor) -> None:
        self.is_pure = on.is_pure()
        self.fingerprint = Fingerprint.of(on.watched(), lenient=not self.is_pure)
        self.originals = on.originals()
        self.evaluate = on.evaluator()
        trained = [s.tensor for s in self.fingerprint.states if s.requires_grad]
        self.trains = bool(trained)
        self.pullback: Pullback | None = None
        self.recomputation: Pullback | None = None
        if self.is_pure and trained and _are_among(trained, self.originals):
            self.pullback = on.pullback()
            self.recomputation = recomputing(self.evaluate, self.originals)
        self.precomputed: Precomputed | None = None

    def known(self, on: EvaluatedTensor) -> Precomputed | None:
        """The value for the next reader, if it is what an evaluation would give now."""
        found = self.precomputed
        if found is not None and not found.fingerprint.holds(on.__dict__):
            self.precomputed = found = None
        return found

    def of_originals(self, fingerprint: Fingerprint) -> list[TensorState]:
        """The states of the originals; one that is parametrized itself has none."""
        return [s for s in fingerprint.states if any(s.tensor is t for t in self.originals)]

    def evaluated(
        self, known: Precomputed | None, trains: bool, pullback: Pullback | None
    ) -> tuple[Kept, Sequence[Tensor]]:
        """Evaluate, unless the value is known, and keep what the gradient needs.

        Args:
            known: the value, if it is known.
            trains: whether there will be a gradient.
            pullback: computes the gradient without a graph; None if it takes one.

        Returns:
            The evaluation, and its inputs.
        """
        value, copied = (known.value, known.copied) if known else (None, None)
        if trains and pullback:
            if value is None:
                with torch.no_grad():
                    value = self.evaluate(*self.originals)
            return KeptArguments(value, self.evaluate, pullback, copied), self.originals
        # The graph starts at aliases of the originals. Otherwise a hook on an original would run
        # twice: in the replay, and where the gradient arrives.
        inputs = [alias(t) if trains and t.requires_grad else t for t in self.originals]
        value = self.evaluate(*inputs) if value is None or trains else value
        return KeptGraph(value, self.evaluate if self.is_pure else None, len(inputs)), inputs


def recipe_of(on: EvaluatedTensor) -> Recipe | None:
    """How a value is evaluated; None if a change of what it depends on cannot be noticed."""
    try:
        return Recipe(on)
    except UnwatchableError:
        return None


def alias(tensor: Tensor) -> Tensor:
    """The same tensor with another node in the graph, whose backward is the identity."""
    # For sparse gradients too.
    return torch.ops.aten.alias.default(tensor)


def _are_among(tensors: Iterable[Tensor], others: Sequence[Tensor]) -> bool:
    return all(any(t is other for other in others) for t in tensors)
