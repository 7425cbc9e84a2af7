"""The random numbers from which constraints make random members of their sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from constrained.constraint.base import Constraint


@dataclass(frozen=True)
class RandomNumbers:
    """Independent random numbers of one dtype, on one device, from one generator.

    `Constraint.sample` makes one and passes it to `Constraint.draw`.

    Attributes:
        generator: where the numbers come from; None for torch's default generator.
        dtype: at least single precision.
        device: as torch's factory functions take it; None for the current default.
    """

    generator: torch.Generator | None
    dtype: torch.dtype
    device: torch.device | str | None

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Standard normal numbers; complex ones have the variance 1, half of it in each part."""
        return torch.randn(
            tuple(shape), generator=self.generator, dtype=self.dtype, device=self.device
        )

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """Numbers uniform on [0, 1)."""
        return torch.rand(
            tuple(shape), generator=self.generator, dtype=self.dtype, device=self.device
        )

    def exponential(self, shape: Sequence[int]) -> Tensor:
        """Exponentially distributed numbers of mean 1, none of them zero."""
        numbers = torch.empty(tuple(shape), dtype=self.dtype, device=self.device)
        numbers.exponential_(generator=self.generator)
        return numbers.clamp_(min=torch.finfo(self.dtype).tiny)

    def member(self, constraint: Constraint, shape: Sequence[int]) -> Tensor:
        """A random member of another constraint's set, of the full shape."""
        return constraint.sample(
            shape, generator=self.generator, dtype=self.dtype, device=self.device
        )
