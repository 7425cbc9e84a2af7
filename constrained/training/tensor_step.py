"""What the hooks note of one projected tensor from before an optimizer step until after it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from constrained.attached.attached_constraint import AttachedConstraint
from constrained.constraint.base import Constraint
from constrained.training.in_place import InPlace
from constrained.training.sparse_rows import ZeroRows


@dataclass
class TensorStep:
    """A projected tensor that an optimizer trains, and what is noted of its step.

    Attributes:
        tensor: the tensor.
        parameter: its parameter.
        before: where the step began; noted only where `end_of_step` needs it.
        last: the same, to go back to; noted only for ``on_nonfinite="skip"``.
        rows: the rows that a sparse gradient has moved.
        skipped: the gradient that was not finite, and that this step leaves out.
        in_place: the fast way, if the set has one.
        was_written: whether another one than an optimizer has moved the tensor since its last step.
    """

    tensor: AttachedConstraint
    parameter: torch.nn.Parameter
    before: Tensor | None = None
    last: Tensor | None = None
    rows: Tensor | None = None
    skipped: Tensor | None = None
    in_place: InPlace | None = None
    was_written: bool = False

    def __post_init__(self) -> None:
        if self.tensor.on_nonfinite == "raise" and self.constraint.is_in_place():
            self.in_place = InPlace(self.constraint)
        self.zero_rows = ZeroRows(self.tensor, self.parameter)

    def forget(self) -> None:
        """Drop what has been noted of a step."""
        self.before = self.last = self.rows = self.skipped = None
        self.zero_rows.put_back(self.parameter)
        if self.in_place is not None:
            self.in_place.is_on = False

    def is_stale(self) -> bool:
        """Whether the module has another parameter now."""
        return self.tensor.parameter() is not self.parameter

    def was_moved(self) -> bool:
        """Whether the tensor may lie outside of its set, although it has no gradient."""
        # Those who write ``parameter.data`` leave no trace in its version.
        return self.parameter.requires_grad and not self.tensor.is_clean(self.parameter)

    @property
    def constraint(self) -> Constraint:
        """The constraint of the tensor."""
        return self.tensor.constraint()
