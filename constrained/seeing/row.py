"""One row of a report."""

from __future__ import annotations

from dataclasses import dataclass

from constrained.model.cost import Cost
from constrained.seeing.measured import holds


@dataclass(frozen=True)
class Row:
    """One parametrized tensor in a report.

    Attributes:
        path: where it is in the model.
        constraint: what it is parametrized by.
        shape: the shape of its value.
        violation: the largest one in its batch; NaN if the value has no numbers, as on the meta
            device; None if nothing is known, because a foreign module parametrizes it, or because
            it belongs to a lazy module and has no shape yet.
        tolerance: the largest violation that counts as rounding.
        moved: how far it moved when it was constrained, relative to its norm; None if unknown.
        flat: the share of its elements that lie where the derivative of the map vanishes, next to
            the boundary: an optimizer hardly moves them.
        module: the class of the module that owns it.
        slack: how far the nearest of its elements is from the boundary of the set, in the units of
            the violation; None if the set has no boundary. See `Constraint.slack`.
        at_boundary: the share of its elements that lie on the boundary, up to rounding or a
            millionth of the largest entry.
        condition: of elements that are matrices, the largest ratio of the largest singular value
            and the smallest one that is not zero.
        rank: of such elements, the least rank.
        drift: how far the value is from the one that `report` was given, relative to its norm.
        cost: what a training step does for it: see `constrained.model.cost.cost_of`.
    """

    path: str
    constraint: str
    shape: tuple[int, ...]
    violation: float | None
    tolerance: float
    moved: float | None
    flat: float = 0.0
    module: str = ""
    slack: float | None = None
    at_boundary: float | None = None
    condition: float | None = None
    rank: int | None = None
    drift: float | None = None
    cost: Cost | None = None

    @property
    def holds(self) -> bool | None:
        """Whether the violation is no more than rounding; None if nobody can tell."""
        return holds(self.violation, self.tolerance)
