"""How a value is evaluated, looked up once, and valid while nothing but numbers changes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from constrained.evaluation.backward import (
    recomputing,
)
from constrained.evaluation.evaluated_tensor import EvaluatedTensor
from constrained.evaluation.fingerprint import Fingerprint, Structure, UnwatchableError
from constrained.evaluation.tensor_state import TensorState


class Recipe:
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

    def __init__(self, on: EvaluatedTensor, structure: Structure) -> None:
        self.structure = structure
        self.is_pure = on.is_pure()
        self.originals = on.originals()
        self.evaluate = on.evaluator()
        trained = [t for t in structure.tensors if t.requires_grad]
        self.trains = bool(trained)
        self.pullback = self.recomputation = None
        if self.is_pure and trained and are_among(trained, self.originals):
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


def recipe_of(on: EvaluatedTensor) -> Recipe | None:
    try:
        return Recipe(on, Structure(on.watched(), lenient=not on.is_pure()))
    except UnwatchableError:
        return None


def are_among(tensors: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return all(any(t is other for other in others) for t in tensors)
