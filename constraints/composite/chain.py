"""Several constraints on one tensor, one map after another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import MinLen
from torch import Tensor

from constrained import register
from constrained.constraint.argument_schema import Spec
from constrained.constraint.base import unguarded
from constrained.constraint.elements import Params
from constrained.constraint.sampling import RandomNumbers
from constraints.bases.linear_space import LinearSpace
from constraints.bases.parts import (
    Composite,
    build_parts,
    canonical,
    events,
    inherited,
    largest,
    unpack,
)


@register("chain")
class Chain(Composite):
    """Several constraints on the same tensor, one map after another: ``"symmetric | ball"``.

    **Set**: the members of all parts' sets, A and B and ... Its dimension is that of the first
    part's set less the codimensions of the others.

    **Map**: that of the first part, then those of the others, each from a tensor to the one of its
    set that belongs to it, such as a nearest one. A map follows others only if its class declares
    that it keeps their sets (`Constraint.preserves`): ``positive_definite | special_linear`` scales
    a positive definite matrix to determinant one, ``symmetric | spectral_norm`` cuts the
    eigenvalues of a symmetric matrix. In the order that is not declared, or where none is, there is
    an error. Rounding errors that a map adds across a linear space are taken away; across other
    sets they stay, and grow with the condition of the matrix.

    **Right inverse**: those of the parts, from the last one to the first.

    **Reference**: as ``torch.nn.utils.parametrize`` composes parametrizations.

    Args:
        parts: two constraints or more: names, strings or mappings as `constrained.constrain` takes
            them, or `Constraint` objects.

    Raises:
        ValueError: if there are fewer than two parts, or one does not keep the sets before it.

    Example:
        >>> both = Chain(parts=["symmetric", "spectral_norm(bound=2)"])
        >>> both(torch.tensor([[3.0, 1.0], [-1.0, 0.0]]))
        tensor([[2., 0.],
                [0., 0.]])
    """

    examples = (
        ({"parts": ["symmetric", "spectral_norm"]}, (3, 3)),
        ({"parts": ["skew", "spectral_norm(bound=0.5)"]}, (4, 4)),
        ({"parts": ["sum_to_zero", "ball"]}, (4,)),
    )

    def __init__(self, parts: Annotated[Sequence[Spec], MinLen(2)]) -> None:
        super().__init__()
        built = build_parts("chain", parts)
        if len(built) < 2:
            raise ValueError("chain: there must be two parts or more.")
        for i, part in enumerate(built):
            # An element has a known number of dimensions.
            events(part)
            for former in built[:i]:
                if former.name not in part.preserves:
                    kept = (
                        f"those of {', '.join(part.preserves)}" if part.preserves else "no others"
                    )
                    raise ValueError(
                        f"chain: the map of {part!r} does not keep the set of {former!r}, which "
                        f"comes before it; of the named sets it keeps {kept}."
                    )
        self._take(parts, built)
        kinks = inherited(built)
        self.expected_failures = {
            **kinks,
            # A random member of the first set lies outside of the others, and ends on a boundary.
            **{k.replace(":boundary", ":random"): kinks[k] for k in kinks if ":boundary" in k},
            "nearest": "the nearest member of all sets has no formula: project() goes from one to "
            "the next",
        }

    @property
    def event_dim(self) -> int:  # type: ignore[override]
        """That of the part with the largest elements."""
        return max(events(part) for part in self._each())

    @property
    def frozen(self) -> tuple[int, ...]:  # type: ignore[override]
        """Those of the first part."""
        return self._each()[0].frozen

    def forward(self, *params: Tensor) -> Tensor:
        """The maps, one after another."""
        first, *others = self._each()
        value = first(*params)
        for part in others:
            value = part(value)
        # A linear map takes away what rounding has added across its space.
        return first(value) if isinstance(first, LinearSpace) else value

    def rounded(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        """As all parts round: what is rounded already stays."""
        for part in self._each():
            value = part.rounded(value, dtype).to(value.dtype)
        return value.to(dtype)

    def right_inverse(self, value: Tensor) -> Params:
        """The right inverses, from the last to the first."""
        first, *others = self._each()
        for part in reversed(others):
            (value,) = unpack(unguarded(part, "right_inverse")(value))
        return unguarded(first, "right_inverse")(value)

    def canonical(self, *params: Tensor) -> tuple[Tensor, ...]:
        """That of the second part, if it follows a linear one alone; else that of the first."""
        first, *others = self._each()
        if not self._hands_over():
            return canonical(first, *params)
        with torch.no_grad():
            return canonical(others[0], first(*params))

    def restored_together(self, count: int) -> Sequence[Sequence[int]]:
        """As those of the first part: a part that follows it has one."""
        return self._each()[0].restored_together(count)

    def param_count(self) -> int:
        """Those of the first part."""
        return self._each()[0].param_count()

    def has_canonical(self) -> bool:
        """Whether a part has better parameters."""
        return self._hands_over() or self._each()[0].has_canonical()

    def _hands_over(self) -> bool:
        # The parameter of a linear part is a member of its set as well.
        first, *others = self._each()
        alone = isinstance(first, LinearSpace) and len(others) == 1
        return alone and others[0].has_canonical()

    def violation(self, value: Tensor) -> Tensor:
        """The largest of the parts' violations."""
        batch = value.ndim - events(self)
        return torch.stack([largest(part.violation(value), batch) for part in self._each()]).amax(0)

    def project(self, value: Tensor) -> Tensor:
        """A retraction: the parts' projections, one after another."""
        first, *others = self._each()
        value = first.project(value)
        for part in others:
            value = part.project(value)
        return first.project(value) if isinstance(first, LinearSpace) else value

    def admit(self, value: Tensor, share: float) -> Tensor:
        """What the parts admit, one after another."""
        del share
        first, *others = self._each()
        value = first.start(value)
        for part in others:
            value = part.start(value)
        return first.project(value) if isinstance(first, LinearSpace) else value

    def draw(self, shape: tuple[int, ...], random: RandomNumbers) -> Tensor:
        """A sample of the first part, projected by the others."""
        first, *others = self._each()
        value = random.member(first, shape)
        for part in others:
            value = part.project(value)
        return first.project(value) if isinstance(first, LinearSpace) else value

    def dimension(self, shape: Sequence[int]) -> int:
        """The dimension of the first part's set, less the codimensions of the others."""
        event, space = tuple(shape), torch.Size(shape).numel()
        dimensions: list[int] = []
        for part in self._each():
            cut = len(event) - events(part)
            each = part.dimension(event[cut:])
            dimensions.append(torch.Size(event[:cut]).numel() * each)
        return dimensions[0] - sum(space - d for d in dimensions[1:])

    def shape_problem(self, event: tuple[int, ...]) -> str | None:
        """Every part admits it."""
        for part in self._each():
            problem = part.shape_problem(event[len(event) - events(part) :])
            if problem:
                return f"{problem} (for {part!r})"
        return None
