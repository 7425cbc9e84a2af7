"""Vectors whose entries increase."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from constrained import Constraint, register
from constrained.tolerance import working_dtype
from constraints.isotonic import isotonic
from constraints.softplus import inverse_softplus, softplus


@register("ordered", aliases=("ordered_vector", "increasing"))
class Ordered(Constraint):
    """Vectors whose entries increase.

    **Set**: {x in R^n : x_1 < x_2 < ... < x_n}. Dimension n, open.

    **Map**: x_1 = y_1, x_k = x_(k-1) + softplus(y_k), onto the set, but for steps that are lost in
    the rounding of the sum.

    **Right inverse**: the inverse of softplus, of the differences. A difference of zero, on the
    boundary, is taken for the machine epsilon (times the largest entry, if that is above 1).

    **Reference**: Stan Reference Manual, section "Ordered vector", with softplus for exp.

    Example:
        >>> Ordered()(torch.tensor([1.0, 0.0, 0.0]))
        tensor([1.0000, 1.6931, 2.3863])
    """

    event_dim = 1
    closed = False
    examples = (({}, (1,)), ({}, (2,)), ({}, (6,)))

    def forward(self, y: Tensor) -> Tensor:
        """``y_1``, and the steps added up."""
        return torch.cat((y[..., :1], softplus(y[..., 1:])), dim=-1).cumsum(-1)

    def right_inverse(self, value: Tensor) -> Tensor:
        """``x_1``, and the inverse of softplus of the differences."""
        return torch.cat((value[..., :1], inverse_softplus(_steps(value))), dim=-1)

    def violation(self, value: Tensor) -> Tensor:
        """The largest fall from one entry to the next, halved: each of the two may move."""
        return _worst_fall(value) / 2

    def project(self, value: Tensor) -> Tensor:
        """The nearest point of the closure in the Euclidean norm, with small steps between ties.

        It is found by isotonic regression. Ties are parted by the square root of the machine
        epsilon (times the largest entry, if that is above 1): at smaller steps softplus has no
        gradient left that an optimizer would notice.
        """
        return torch.where(_increases(value), value, _parted(isotonic(value)))

    def sample(
        self,
        shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """The order statistics of n standard normal numbers."""
        self.check_shape(shape)
        dtype = dtype or torch.get_default_dtype()
        X = torch.randn(
            tuple(shape), generator=generator, dtype=working_dtype(dtype), device=device
        )
        return X.sort(-1).values.to(dtype)

    def dimension(self, shape: Sequence[int]) -> int:
        """``n``."""
        return shape[-1]

    def shape_problem(self, event: tuple[int, ...]) -> str | None:
        """An element has at least one entry."""
        return None if event[0] > 0 else "must have at least one entry"


@register("positive_ordered", aliases=("positive_increasing",))
class PositiveOrdered(Constraint):
    """Vectors of positive entries that increase.

    **Set**: {x in R^n : 0 < x_1 < x_2 < ... < x_n}. Dimension n, open.

    **Map**: x_k = softplus(y_1) + ... + softplus(y_k), onto the set, but for steps that are lost in
    the rounding of the sum.

    **Right inverse**: the inverse of softplus, of the differences from 0 on. A difference of zero,
    on the boundary, is taken for the machine epsilon (times the largest entry, if that is above 1).

    **Reference**: Stan Reference Manual, section "Positive ordered vector", with softplus for exp.

    Example:
        >>> PositiveOrdered()(torch.tensor([0.0, 0.0]))
        tensor([0.6931, 1.3863])
    """

    event_dim = 1
    closed = False
    examples = (({}, (1,)), ({}, (2,)), ({}, (6,)))

    def forward(self, y: Tensor) -> Tensor:
        """The steps added up."""
        return softplus(y).clamp(min=torch.finfo(y.dtype).tiny).cumsum(-1)

    def right_inverse(self, value: Tensor) -> Tensor:
        """The inverse of softplus of the differences."""
        return inverse_softplus(_steps(F.pad(value, (1, 0))))

    def violation(self, value: Tensor) -> Tensor:
        """How far the first entry lies below 0, or half of the largest fall to a next one."""
        return torch.maximum((-value).clamp(min=0).amax(-1), _worst_fall(value) / 2)

    def project(self, value: Tensor) -> Tensor:
        """The nearest point of the closure in the Euclidean norm, with small steps between ties.

        As for `Ordered`, and from zero on.
        """
        inside = _increases(value) & (value[..., :1] > 0)
        nearest = F.pad(isotonic(value).clamp(min=0), (1, 0))
        return torch.where(inside, value, _parted(nearest)[..., 1:])

    def sample(
        self,
        shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """The order statistics of n log-normal numbers."""
        self.check_shape(shape)
        dtype = dtype or torch.get_default_dtype()
        X = torch.randn(
            tuple(shape), generator=generator, dtype=working_dtype(dtype), device=device
        )
        return X.exp().sort(-1).values.to(dtype)

    def dimension(self, shape: Sequence[int]) -> int:
        """``n``."""
        return shape[-1]

    def shape_problem(self, event: tuple[int, ...]) -> str | None:
        """An element has at least one entry."""
        return None if event[0] > 0 else "must have at least one entry"


def _steps(value: Tensor) -> Tensor:
    """The differences, none of them so small that softplus has no gradient there."""
    largest = value.abs().amax(-1, keepdim=True).clamp(min=1)
    least = torch.finfo(value.dtype).eps * largest
    steps = value.diff(dim=-1)
    return torch.where(steps > 0, steps.clamp(min=torch.finfo(value.dtype).tiny), least)


def _parted(value: Tensor) -> Tensor:
    """A vector that does not decrease, with a small step wherever it does not increase."""
    largest = value.abs().amax(-1, keepdim=True).clamp(min=1)
    least = torch.finfo(value.dtype).eps ** 0.5 * largest
    short = (least - value.diff(dim=-1)).clamp(min=0)
    return value + F.pad(short.cumsum(-1), (1, 0))


def _increases(value: Tensor) -> Tensor:
    return (value.diff(dim=-1) > 0).all(-1, keepdim=True)


def _worst_fall(value: Tensor) -> Tensor:
    # A zero beside the differences: of one entry there are none.
    return F.pad(-value.diff(dim=-1), (0, 1)).amax(-1)
