"""Subspaces, by their orthonormal bases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from constrained import Constraint, register
from constrained.constraint.tolerance import working_dtype
from constraints.bases.linear_space import empty
from constraints.math.polar import defect, polar


@register("grassmann", aliases=("grassmannian", "subspace"))
class Grassmann(Constraint):
    """Subspaces of dimension p in R^n, by an orthonormal basis.

    **Set**: {W in R^(n x p) : W'W = I}, where W and W Q, for an orthogonal Q, stand for the same
    subspace; W W' = I for n < p, with rows for columns. The subspaces are a closed manifold of
    dimension p (n - p).

    **Map**: X -> polar(B + (I - B B') X), where B is a member that stays as it is: directions
    within the subspace change nothing, so that neither a gradient nor an optimizer's momentum is
    spent on them. One basis of every subspace that holds no vector orthogonal to all of B, and so
    onto all but a set of measure zero; the others are limits.

    **Right inverse**: X = 0 and B = the matrix, the very basis that was given.

    **Reference**: Absil, Mahony and Sepulchre, Optimization Algorithms on Matrix Manifolds (2008),
    sections 3.4.4 and 3.6.2, for horizontal directions; their example 4.1.5 for a retraction like
    this one.

    A loss must depend on the subspace alone, as that of principal components does. For one that
    depends on the basis take `orthogonal`.

    Example:
        >>> grassmann = Grassmann()
        >>> B = torch.tensor([[1.0], [0.0]])
        >>> grassmann(torch.tensor([[5.0], [1.0]]), B)
        tensor([[0.7071],
                [0.7071]])
    """

    event_dim = 2
    frozen = (1,)
    examples = (({}, (1, 1)), ({}, (3, 1)), ({}, (5, 2)), ({}, (2, 5)), ({}, (3, 3)))
    expected_failures: ClassVar[dict[str, str]] = {
        "adam_reaches_the_optimum": "its loss depends on the basis, which stays as near as it can "
        "to where it starts: only the subspace is free",
    }

    def forward(self, X: Tensor, B: Tensor) -> Tensor:
        """``polar(B + (I - B B') X)``."""
        if X.shape[-2] < X.shape[-1]:
            return self._tall(X.mT, B.mT).mT.contiguous()
        return self._tall(X, B)

    def _tall(self, X: Tensor, B: Tensor) -> Tensor:
        if B.shape[-2] == B.shape[-1]:
            # There is one subspace only, and rounding is no direction.
            return polar(B) + 0 * X
        across = X - B @ (B.mT @ X)
        # Once more: what is left of the part along B is not small beside a large X.
        return polar(B + (across - B @ (B.mT @ across)))

    def right_inverse(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """``(0, W)``."""
        return torch.zeros_like(value), value

    def violation(self, value: Tensor) -> Tensor:
        """The largest entry of ``|W' W - I|``, or of ``|W W' - I|`` if W is wide."""
        W = value if value.shape[-2] >= value.shape[-1] else value.mT
        # The value is finite: a NaN is the difference of two overflows.
        excess = defect(W, W).abs().nan_to_num(nan=torch.inf, posinf=torch.inf)
        return excess.amax((-2, -1))

    def project(self, value: Tensor) -> Tensor:
        """The nearest orthonormal basis in the Frobenius norm, the polar factor."""
        return polar(value)

    def sample(
        self,
        shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Uniformly distributed subspaces, and bases: the polar factor of a Gaussian matrix."""
        self.check_shape(shape)
        dtype = dtype or torch.get_default_dtype()
        gaussian = torch.randn(
            tuple(shape), generator=generator, dtype=working_dtype(dtype), device=device
        )
        return polar(gaussian).to(dtype)

    def dimension(self, shape: Sequence[int]) -> int:
        """``p (n - p)``, where p is the smaller side: that of the manifold of subspaces."""
        n, p = max(shape[-2:]), min(shape[-2:])
        return p * (n - p)

    def shape_problem(self, event: tuple[int, ...]) -> str | None:
        """An element is no empty matrix."""
        return empty(event)
