"""A module with one constrained tensor, which the laws about training train."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor, nn

from constrained.constraint.base import Constraint


class OneTensorModel(nn.Module):
    """A module that holds one tensor, the parameter ``weight``."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.clone())

    def forward(self) -> Tensor:
        """The tensor."""
        return self.weight


def constrained_model(constraint: Constraint, value: Tensor) -> Any:
    """A `OneTensorModel` of ``value`` with the weight constrained."""
    from constrained import constrain

    with warnings.catch_warnings():
        # Laws also try members next to the boundary, and `constrain` warns about those.
        warnings.simplefilter("ignore", UserWarning)
        return constrain(OneTensorModel(value), "weight", constraint)
