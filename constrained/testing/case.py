"""A case: one constraint, shape and dtype to try a law on."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from constrained.constraint.base import Constraint
from constrained.constraint.elements import unpack as unpack

#: Names of members of a set, and of all points at which derivatives are taken.
MEMBERS = ("random", "zeros", "ones", "eye", "repeated", "boundary")
POINTS = ("random_params", "zero_params", *MEMBERS)


@dataclass(frozen=True, eq=False)
class Case:
    """A constraint class with constructor arguments, a shape and a dtype.

    Attributes:
        cls: the class under trial.
        kwargs: the constructor's arguments.
        event: shape of one element.
        batch: shape of the batch of elements.
        dtype: dtype of the tensors.
        point: for laws about derivatives, the point where they are taken; one of `POINTS`.
    """

    cls: type[Constraint]
    kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    event: tuple[int, ...] = ()
    batch: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32
    point: str | None = None

    @property
    def event_dim(self) -> int:
        """How many trailing dimensions make one element."""
        return len(self.event)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a tensor of elements, batch dimensions first."""
        return (*self.batch, *self.event)

    def build(self) -> Constraint:
        """A new instance of the constraint."""
        return self.cls(**self.kwargs)

    def generator(self, salt: str = "") -> torch.Generator:
        """A random generator with a fixed seed for each case and ``salt``."""
        # Only class and shape set the seed: all dtypes and points of an example get the same
        # numbers.
        seed = zlib.crc32(f"{self.cls.__qualname__} {self.shape} {salt}".encode())
        return torch.Generator().manual_seed(seed)

    def gaussian(self, shape: Sequence[int] | None = None, salt: str = "gaussian") -> Tensor:
        """Standard normal numbers in the case's dtype, by default in its shape."""
        size = self.shape if shape is None else tuple(shape)
        # Drawn in double precision and then rounded, so that they are the same in every dtype.
        wide = torch.complex128 if self.dtype.is_complex else torch.float64
        return torch.randn(size, generator=self.generator(salt), dtype=wide).to(self.dtype)

    def sample(self, constraint: Constraint | None = None, salt: str = "sample") -> Tensor:
        """A random member, of the case's shape and dtype."""
        constraint = constraint or self.build()
        return constraint.sample(self.shape, generator=self.generator(salt), dtype=self.dtype)

    def __str__(self) -> str:
        arguments = ", ".join(f"{k}={v!r}" for k, v in self.kwargs.items())
        name = self.cls.name or self.cls.__name__
        sizes = ["x".join(map(str, self.event)) or "scalar"]
        if self.batch:
            sizes.insert(0, "batch" + "x".join(map(str, self.batch)))
        parts = [f"{name}({arguments})", *sizes, str(self.dtype).removeprefix("torch.")]
        return "-".join([*parts, *([self.point] if self.point else [])])


def call(constraint: Constraint, method: str, *arguments: Tensor) -> tuple[Tensor, ...]:
    """The results of a method; ``forward`` is called as a module is, with its hooks."""
    function = constraint if method == "forward" else getattr(constraint, method)
    return unpack(function(*arguments))


def expect(condition: object, case: Case, sentence: str) -> None:
    """Raise an `AssertionError` that names the case, unless the condition holds."""
    if not condition:
        raise AssertionError(f"{case}: {sentence}")
