"""Maps that leave the members of a set where they are: retractions."""

from __future__ import annotations

from torch import Tensor

from constrained import Constraint


class Retraction(Constraint):
    """What constraints share whose map is a retraction: r(x) = x for every member x.

    The free parameter is a tensor of the element's shape, so that the right inverse is the identity
    and the map may serve as the projection.
    """

    def right_inverse(self, value: Tensor) -> Tensor:
        """The identity."""
        return value

    def project(self, value: Tensor) -> Tensor:
        """What the map makes of the tensor."""
        return self.forward(value)
