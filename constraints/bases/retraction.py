"""Base of constraints whose map is a retraction: it leaves members as they are."""

from __future__ import annotations

from torch import Tensor

from constrained import Constraint


class Retraction(Constraint):
    """Base of constraints whose map is a retraction: r(x) = x for every member x.

    The free parameter has the element's shape, so the right inverse is the identity and the map may
    serve as the projection.
    """

    def right_inverse(self, value: Tensor) -> Tensor:
        """The identity."""
        return value

    def project(self, value: Tensor) -> Tensor:
        """The value of the map."""
        return self.forward(value)
