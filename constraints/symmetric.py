"""Symmetric and skew-symmetric matrices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from constrained import Constraint, register
from constrained.tolerance import working_dtype


@register("symmetric")
class Symmetric(Constraint):
    """Symmetric matrices.

    **Set**: {W in R^(n x n) : W = W'}. Dimension n (n + 1) / 2, a linear space.

    **Map**: X -> (X + X') / 2, onto the set. The gradient with respect to X is symmetric.

    **Right inverse**: the identity.

    **Reference**: Higham, Functions of Matrices (2008), section 8.1: the symmetric part is the
    nearest symmetric matrix in every unitarily invariant norm.

    Example:
        >>> Symmetric()(torch.tensor([[1.0, 4.0], [0.0, 1.0]]))
        tensor([[1., 2.],
                [2., 1.]])
    """

    event_dim = 2
    examples = (({}, (2, 2)), ({}, (5, 5)))

    def forward(self, X: Tensor) -> Tensor:
        """``(X + X') / 2``."""
        return (X + X.mT) / 2

    def right_inverse(self, value: Tensor) -> Tensor:
        """The identity."""
        return value

    def violation(self, value: Tensor) -> Tensor:
        """The largest entry of the skew part."""
        return ((value - value.mT) / 2).abs().amax((-2, -1))

    def project(self, value: Tensor) -> Tensor:
        """The nearest point: the symmetric part."""
        return (value + value.mT) / 2

    def sample(
        self,
        shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """The symmetric part of a standard normal matrix (the Gaussian orthogonal ensemble)."""
        self.check_shape(shape)
        dtype = dtype or torch.get_default_dtype()
        X = torch.randn(shape, generator=generator, dtype=working_dtype(dtype), device=device)
        return ((X + X.mT) / 2).to(dtype)

    def dimension(self, shape: Sequence[int]) -> int:
        """``n (n + 1) / 2``."""
        return shape[-1] * (shape[-1] + 1) // 2

    def shape_problem(self, event: tuple[int, ...]) -> str | None:
        """An element is a square matrix."""
        return _not_square(event)


@register("skew", aliases=("skew_symmetric", "antisymmetric"))
class Skew(Constraint):
    """Skew-symmetric matrices.

    **Set**: {W in R^(n x n) : W = -W'}. Dimension n (n - 1) / 2, a linear space.

    **Map**: X -> (X - X') / 2, onto the set. The gradient with respect to X is skew-symmetric.

    **Right inverse**: the identity.

    **Reference**: as for `Symmetric`.

    Example:
        >>> Skew()(torch.tensor([[1.0, 4.0], [0.0, 1.0]]))
        tensor([[ 0.,  2.],
                [-2.,  0.]])
    """

    event_dim = 2
    examples = (({}, (2, 2)), ({}, (5, 5)))

    def forward(self, X: Tensor) -> Tensor:
        """``(X - X') / 2``."""
        return (X - X.mT) / 2

    def right_inverse(self, value: Tensor) -> Tensor:
        """The identity."""
        return value

    def violation(self, value: Tensor) -> Tensor:
        """The largest entry of the symmetric part."""
        return ((value + value.mT) / 2).abs().amax((-2, -1))

    def project(self, value: Tensor) -> Tensor:
        """The nearest point: the skew part."""
        return (value - value.mT) / 2

    def sample(
        self,
        shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """The skew part of a standard normal matrix."""
        self.check_shape(shape)
        dtype = dtype or torch.get_default_dtype()
        X = torch.randn(shape, generator=generator, dtype=working_dtype(dtype), device=device)
        return ((X - X.mT) / 2).to(dtype)

    def dimension(self, shape: Sequence[int]) -> int:
        """``n (n - 1) / 2``."""
        return shape[-1] * (shape[-1] - 1) // 2

    def shape_problem(self, event: tuple[int, ...]) -> str | None:
        """An element is a square matrix."""
        return _not_square(event)


def _not_square(event: tuple[int, ...]) -> str | None:
    return None if event[0] == event[1] > 0 else "must be a square matrix, not an empty one"
