"""Different constraints on the slices of one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Annotated, cast

import torch
from annotated_types import MinLen
from torch import Tensor

from constrained import Constraint, register
from constrained.constraint.argument_schema import Spec
from constrained.constraint.base import FLAT, unguarded
from constrained.constraint.elements import unpack
from constrained.constraint.sampling import RandomNumbers
from constraints.bases.argument_checks import Count, is_whole
from constraints.composite.parts import (
    Composite,
    build_parts,
    canonical,
    events,
    inherited,
    largest,
    least,
)


@register("product", aliases=("cartesian_product", "cat"))
class Product(Composite):
    r"""Different constraints on the slices of one tensor: the gates of an LSTM, a mean and a scale.

    **Use**: tensors whose parts have different meanings: the fused gates of an LSTM, the fused
    query, key and value of attention, a mean beside a scale.

    **Set**: $A_1 \times \dots \times A_k$, the Cartesian product of the parts' sets: the first
    slice of the tensor is in $A_1$, the second in $A_2$, and so on. Its dimension is the sum of
    theirs; it is closed if all are.

    **Map**: $(y_1, \dots, y_k) \mapsto (f_1(y_1), \dots, f_k(y_k))$, the map of each part, from its
    own free parameters to its slice.

    **Right inverse**: that of each part on its slice.

    **Reference**: as ``torch.distributions.constraints.cat``.

    Args:
        parts: a constraint for each slice: names, strings or mappings as `constrained.constrain`
            takes them, or `Constraint` objects.
        sizes: the length of each slice; None for slices of the same length.
        dim: the dimension that is cut into slices. A negative one counts from the end of each
            element. With 0, 1, ... the whole tensor is one element.

    Shape:
        One element has the last ``-dim`` dimensions, or as many as the largest part's elements if
        that is more.

    Raises:
        TypeError: if dim is not an integer.
        ValueError: if there are no parts, or a part or a size is wrong.

    Example:
        >>> head = Product(parts=["box(low=-1, high=1)", "nonnegative"], sizes=[1, 2], dim=-1)
        >>> head.project(torch.tensor([3.0, 4.0, -5.0]))
        tensor([1., 4., 0.])
    """

    examples = (
        ({"parts": ["simplex", "sphere"], "sizes": [2, 3], "dim": -1}, (5,)),
        ({"parts": ["orthogonal", "sphere"], "sizes": [2, 3], "dim": -2}, (5, 3)),
        ({"parts": ["symmetric", {"name": "sphere", "radius": 2.0}], "dim": -1}, (3, 6)),
        ({"parts": ["skew", "traceless"], "dim": -2}, (4, 2)),
    )

    def __init__(
        self,
        parts: Annotated[Sequence[Spec], MinLen(1)],
        sizes: Sequence[Count] | None = None,
        dim: int = 0,
    ) -> None:
        super().__init__()
        built = build_parts("product", parts)
        self.sizes = None if sizes is None else list(sizes)
        self.dim = dim
        if not is_whole(dim):
            raise TypeError(f"product: dim must be an integer, got {dim!r}.")
        if self.sizes is not None and len(self.sizes) != len(built):
            raise ValueError(
                f"product: {len(built)} parts need as many sizes, got {len(self.sizes)}."
            )
        if self.sizes is not None and not all(isinstance(s, int) and s > 0 for s in self.sizes):  # pyright: ignore[reportUnnecessaryIsInstance] - callers may be untyped
            raise ValueError(f"product: sizes must be whole numbers from 1 on, got {self.sizes}.")
        self._take(parts, built)
        self.expected_failures = inherited(built)

    @property
    def event_dim(self) -> int | None:  # type: ignore[override] - computed from the parts
        """``-dim``, or the largest ``event_dim`` of the parts if that is more."""
        parts = self._each()
        if self.dim >= 0 or any(part.event_dim is None for part in parts):
            return None
        return max(-self.dim, *(events(part) for part in parts))

    @property
    def frozen(self) -> tuple[int, ...]:  # type: ignore[override] - computed from the parts
        """The frozen parameters of all parts."""
        places = zip(self._bounds, self._each(), strict=True)
        return tuple(start + i for (start, _), part in places for i in part.frozen)

    @property
    def _bounds(self) -> list[tuple[int, int]]:
        """The indices at which the parameters of each part start and end."""
        return list(pairwise([0, *accumulate(part.param_count() for part in self._each())]))

    def forward(self, *params: Tensor) -> Tensor:
        """Each part's element of its own parameters, side by side."""
        elements = [
            part(*params[start:end])
            for part, (start, end) in zip(self._each(), self._bounds, strict=True)
        ]
        return torch.cat(elements, self.dim)

    def rounded(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        """Each slice rounded by its part."""
        pieces = [part.rounded(piece, dtype) for part, piece in self._slices(value)]
        return torch.cat(pieces, self.dim)

    def right_inverse(self, value: Tensor) -> tuple[Tensor, ...]:
        """The parameters of all parts, one after another."""
        free: list[Tensor] = []
        for part, piece in self._slices(value):
            found = unpack(unguarded(part, "right_inverse")(piece))
            if len(found) != part.param_count():
                raise TypeError(
                    f"product: {part!r} has {len(found)} free parameters, where the signature of "
                    f"its forward says {part.param_count()}."
                )
            free += [param.contiguous() for param in found]
        return tuple(free)

    def canonical(self, *params: Tensor) -> tuple[Tensor, ...]:
        """The canonical parameters of each part."""
        better: list[Tensor] = []
        for part, (start, end) in zip(self._each(), self._bounds, strict=True):
            better += canonical(part, *params[start:end])
        return tuple(better)

    def restored_together(self, count: int) -> Sequence[Sequence[int]]:
        """The groups of each part."""
        del count
        return [
            [start + i for i in group]
            for part, (start, end) in zip(self._each(), self._bounds, strict=True)
            for group in part.restored_together(end - start)
        ]

    def param_count(self) -> int:
        """The number of parameters of all parts."""
        return self._bounds[-1][1]

    def has_canonical(self) -> bool:
        """Whether `canonical` of some part may change its parameters."""
        return any(part.has_canonical() for part in self._each())

    def violation(self, value: Tensor) -> Tensor:
        """The largest of the parts' violations."""
        batch = () if self.event_dim is None else value.shape[: value.ndim - self.event_dim]
        found = [part.violation(piece) for part, piece in self._slices(value)]
        return torch.stack([largest(each, len(batch)) for each in found]).amax(0)

    def slack(self, value: Tensor) -> Tensor | None:
        """The least of the parts' slacks."""
        batch = 0 if self.event_dim is None else value.ndim - self.event_dim
        return least([part.slack(piece) for part, piece in self._slices(value)], batch)

    def project(self, value: Tensor) -> Tensor:
        """Each slice projected by its part: a nearest point if all of these are."""
        pieces = [part.project(piece) for part, piece in self._slices(value)]
        return torch.cat(pieces, self.dim)

    def tangent(self, value: Tensor, vector: Tensor) -> Tensor:
        """Each part's projection of its slice."""
        return self._on_both("tangent", value, vector)

    def is_smooth(self) -> bool:
        """Whether the sets of all parts are."""
        return all(part.is_smooth() for part in self._each())

    def retract(self, value: Tensor) -> Tensor:
        """Each part brings its slice back."""
        pieces = [part.retract(piece) for part, piece in self._slices(value)]
        return torch.cat(pieces, self.dim)

    def nearby(self, value: Tensor) -> Tensor:
        """Each part's members near its slice."""
        return torch.cat([part.nearby(piece) for part, piece in self._slices(value)], self.dim)

    def project_scaled(self, value: Tensor, scale: Tensor) -> Tensor | None:
        """Each part projects its slice; None if one has no formula."""
        slices = zip(self._slices(value), self._slices(scale), strict=True)
        found = [part.project_scaled(piece, weights) for (part, piece), (_, weights) in slices]
        known = [piece for piece in found if piece is not None]
        return torch.cat(known, self.dim) if len(known) == len(found) else None

    def admissible(self, value: Tensor, gradient: Tensor) -> Tensor:
        """Each part makes its slice admissible."""
        return self._on_both("admissible", value, gradient)

    def _on_both(self, method: str, value: Tensor, vector: Tensor) -> Tensor:
        slices = zip(self._slices(value), self._slices(vector), strict=True)
        found = [getattr(part, method)(piece, other) for (part, piece), (_, other) in slices]
        return torch.cat(found, self.dim)

    def inwards(self, value: Tensor, share: float) -> Tensor:
        """Each slice moved inwards by its part."""
        pieces = [part.inwards(piece, share) for part, piece in self._slices(value)]
        return torch.cat(pieces, self.dim)

    def start(self, value: Tensor) -> Tensor:
        """The start of each slice."""
        self.check_tensor(value)
        return torch.cat([part.start(piece) for part, piece in self._slices(value)], self.dim)

    def flat(self, value: Tensor, share: float = FLAT) -> Tensor:
        """Whether the derivative vanishes at each element of each slice, slice after slice.

        Returns:
            Boolean tensor of one dimension.
        """
        found = [part.flat(piece, share) for part, piece in self._slices(value)]
        return torch.cat([each.flatten() for each in found])

    def draw(self, shape: tuple[int, ...], random: RandomNumbers) -> Tensor:
        """Each slice sampled by its part, independently."""
        pieces = [
            random.member(part, piece)
            for part, piece in zip(self._each(), self._shapes(shape), strict=True)
        ]
        return torch.cat(pieces, self.dim)

    def dimension(self, shape: Sequence[int]) -> int:
        """The sum of the parts' dimensions."""
        total = 0
        for part, piece in zip(self._each(), self._shapes(tuple(shape)), strict=True):
            cut = len(piece) - events(part, len(piece))
            total += torch.Size(piece[:cut]).numel() * part.dimension(piece[cut:])
        return total

    def shape_problem(self, event: tuple[int, ...]) -> str | None:
        """The slices fill the dimension, and each has a shape that its part accepts."""
        if not -len(event) <= self.dim < len(event):
            return f"must have a dimension {self.dim}"
        length = event[self.dim]
        if self.sizes is None and length % len(self.parts):
            return f"must have a multiple of {len(self.parts)} entries along dimension {self.dim}"
        if self.sizes is not None and length != sum(self.sizes):
            return f"must have {sum(self.sizes)} entries along dimension {self.dim}"
        for i, (part, piece) in enumerate(zip(self._each(), self._shapes(event), strict=True)):
            count = events(part, len(piece))
            problem = (
                f"must have at least {count} dimensions"
                if len(piece) < count
                else part.shape_problem(piece[len(piece) - count :])
            )
            if problem:
                return f"has a slice {i}, of shape {piece} for {part!r}, which {problem}"
        return None

    def _lengths(self, total: int) -> list[int]:
        return self.sizes or [total // len(self.parts)] * len(self.parts)

    def _slices(self, value: Tensor) -> list[tuple[Constraint, Tensor]]:
        lengths = self._lengths(value.shape[self.dim])
        pieces = cast("tuple[Tensor, ...]", value.split(lengths, self.dim))
        return list(zip(self._each(), pieces, strict=True))

    def _shapes(self, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
        place = self.dim % len(shape)
        return [
            (*shape[:place], length, *shape[place + 1 :])
            for length in self._lengths(shape[self.dim])
        ]
