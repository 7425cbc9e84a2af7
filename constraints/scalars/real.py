"""All tensors: for the unconstrained part of a tensor whose other parts are constrained."""

from __future__ import annotations

import torch
from torch import Tensor

from constrained import register
from constraints.bases.linear_space import ZeroPattern


@register("real", aliases=("unconstrained", "euclidean"))
class Real(ZeroPattern):
    r"""All tensors: no constraint, as a part of a `Product` or of another library's constraint.

    **Use**: the unconstrained slices of a `product`: the mean beside a scale, the free rows beside
    a simplex.

    **Set**: $\mathbb{R}$, elementwise: all of space. A linear space, whose dimension is the number
    of entries.

    **Map**: the identity, onto the set.

    **Right inverse**: the identity.

    **Reference**: as ``torch.distributions.constraints.real``.

    Example:
        >>> import constrained
        >>> head = constrained.get("product")(parts=["nonnegative", "real"], sizes=[1, 2], dim=-1)
        >>> head.project(torch.tensor([-1.0, -2.0, 3.0]))
        tensor([ 0., -2.,  3.])
    """

    event_dim = 0
    examples = (({}, ()),)

    def part(self, X: Tensor) -> Tensor:
        """X itself."""
        return X

    def move(self, value: Tensor, vector: Tensor) -> Tensor:
        """The sum: no way back is needed."""
        return value + vector

    def transport(self, vector: Tensor, new: Tensor) -> Tensor:
        """The vector itself."""
        return vector

    def violation(self, value: Tensor) -> Tensor:
        """Zero."""
        return torch.zeros_like(value.real)
