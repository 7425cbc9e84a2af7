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
from constrained.constraint.elements import Params, unpack
from constrained.constraint.sampling import RandomNumbers
from constraints.bases.linear_space import LinearSpace
from constraints.composite.parts import (
    Composite,
    build_parts,
    canonical,
    events,
    inherited,
    largest,
    least,
)


@register("chain")
class Chain(Composite):
    r"""Several constraints on the same tensor, one map after another: ``"symmetric | ball"``.

    **Use**: two properties at once: symmetric and of bounded norm, skew and bounded, of sum zero in
    a ball.

    **Set**: $A_1 \cap \dots \cap A_k$, the intersection of the parts' sets. Its dimension is that
    of the first part's set less the codimensions of the others.

    **Map**: $y \mapsto f_k(\dots f_1(y))$, the map of the first part, then those of the others in
    turn. A part may follow others only if its class declares that its map keeps their sets
    (`Constraint.preserves`): ``positive_definite | special_linear`` scales a positive definite
    matrix to determinant one, ``symmetric | spectral_norm`` cuts the eigenvalues of a symmetric
    matrix. An order that is not declared is an error. If the first set is a linear space, its
    projection at the end removes the rounding errors by which later maps leave it. For other sets
    these errors stay, and grow with the condition number of the matrix.

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
            # Raises for a part whose elements have no fixed number of dimensions.
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
            # A random member of the first set lies outside of the others, so it ends on a boundary.
            **{k.replace(":boundary", ":random"): kinks[k] for k in kinks if ":boundary" in k},
            "nearest": "the nearest member of all sets has no formula: project() goes from one to "
            "the next",
        }

    @property
    def event_dim(self) -> int:  # type: ignore[override] - computed from the parts
        """The largest ``event_dim`` of the parts."""
        return max(events(part) for part in self._each())

    @property
    def frozen(self) -> tuple[int, ...]:  # type: ignore[override] - computed from the parts
        """The frozen parameters of the first part, which has all parameters."""
        return self._each()[0].frozen

    def forward(self, *params: Tensor) -> Tensor:
        """The maps, one after another."""
        first, *others = self._each()
        value = first(*params)
        for part in others:
            value = part(value)
        # A projection onto a linear space removes the rounding errors by which others left it.
        return first(value) if isinstance(first, LinearSpace) else value

    def rounded(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        """Rounded by each part in turn; a value that is already rounded does not change."""
        for part in self._each():
            value = part.rounded(value, dtype).to(value.dtype)
        return value.to(dtype)

    def right_inverse(self, value: Tensor) -> Params:
        """The parts' right inverses, from the last to the first."""
        first, *others = self._each()
        for part in reversed(others):
            (value,) = unpack(unguarded(part, "right_inverse")(value))
        return unguarded(first, "right_inverse")(value)

    def canonical(self, *params: Tensor) -> tuple[Tensor, ...]:
        """The second part's, if there are two and the first is linear; else the first part's."""
        first, *others = self._each()
        if not self._hands_over():
            return canonical(first, *params)
        with torch.no_grad():
            return canonical(others[0], first(*params))

    def restored_together(self, count: int) -> Sequence[Sequence[int]]:
        """The groups of the first part: a part that follows another has a single parameter."""
        return self._each()[0].restored_together(count)

    def param_count(self) -> int:
        """The number of parameters of the first part."""
        return self._each()[0].param_count()

    def has_canonical(self) -> bool:
        """Whether `canonical` may change the parameters."""
        return self._hands_over() or self._each()[0].has_canonical()

    def _hands_over(self) -> bool:
        # A member of a linear space is a parameter of itself, so the second part's may replace it.
        first, *others = self._each()
        alone = isinstance(first, LinearSpace) and len(others) == 1
        return alone and others[0].has_canonical()

    def violation(self, value: Tensor) -> Tensor:
        """The largest of the parts' violations."""
        batch = value.ndim - events(self)
        return torch.stack([largest(part.violation(value), batch) for part in self._each()]).amax(0)

    def slack(self, value: Tensor) -> Tensor | None:
        """The least of the parts' slacks."""
        return least([part.slack(value) for part in self._each()], value.ndim - events(self))

    def project(self, value: Tensor) -> Tensor:
        """A retraction: the parts' projections, one after another."""
        return self._through(self._each()[0].project(value), "project")

    def tangent(self, value: Tensor, vector: Tensor) -> Tensor:
        """The projections onto the tangent spaces, one after another.

        It is the orthogonal projection onto their intersection, since the map of each part keeps
        the sets of those before it, and so its derivative keeps their tangent vectors.
        """
        first, *others = self._each()
        vector = first.tangent(value, vector)
        for part in others:
            vector = part.tangent(value, vector)
        return first.tangent(value, vector) if isinstance(first, LinearSpace) else vector

    def is_smooth(self) -> bool:
        """Whether the sets of all parts are."""
        return all(part.is_smooth() for part in self._each())

    def retract(self, value: Tensor) -> Tensor:
        """Bring the tensor back into the first set, then into the next one, and so on.

        For a linear space and one more set this is as near as the methods of the parts are.
        """
        return self._through(self._each()[0].retract(value), "retract")

    def nearby(self, value: Tensor) -> Tensor:
        """Members of the first set, then of the next one, and so on."""
        return self._through(self._each()[0].nearby(value), "nearby")

    def admit(self, value: Tensor, share: float) -> Tensor:
        """The parts' starts, one after another."""
        del share
        return self._through(self._each()[0].start(value), "start")

    def draw(self, shape: tuple[int, ...], random: RandomNumbers) -> Tensor:
        """A sample of the first part, projected by the others."""
        return self._through(random.member(self._each()[0], shape), "project")

    def _through(self, value: Tensor, method: str) -> Tensor:
        """A value from the first part after a method of each of the others."""
        first, *others = self._each()
        for part in others:
            value = getattr(part, method)(value)
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
        """The first problem that a part has with the shape."""
        for part in self._each():
            problem = part.shape_problem(event[len(event) - events(part) :])
            if problem:
                return f"{problem} (for {part!r})"
        return None
