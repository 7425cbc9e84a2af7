"""Several constraints on one tensor: side by side on its slices, or one after another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from constrained import Constraint, register
from constrained.constraint import Params, unguarded
from constrained.spec import SpecError, parse
from constraints.linear_space import LinearSpace


@register("product", aliases=("cartesian_product", "cat"))
class Product(Constraint):
    """Different constraints on the slices of one tensor: the gates of an LSTM, a mean and a scale.

    **Set**: the Cartesian product of the parts' sets, {x : x[first slice] in A, x[second slice] in
    B, ...}. Its dimension is the sum of theirs; it is closed if all are.

    **Map**: that of each part on its slice, from the free parameters of all of them.

    **Right inverse**: that of each part on its slice.

    **Reference**: as ``torch.distributions.constraints.cat``.

    Args:
        parts: a constraint for each slice: names, strings or mappings as `constrained.constrain`
            takes them, or `Constraint` objects.
        sizes: the length of each slice; None for slices of the same length.
        dim: the dimension that is cut: -1, -2 ... from the end of each element, or 0, 1 ... from
            the start, where the whole tensor is one element.

    Shape:
        one element has the dimensions from ``dim`` on, and as many as the largest part's elements.

    Raises:
        ValueError: if there are no parts, or a part, a size or dim is wrong.

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
        self, parts: Sequence[Any], sizes: Sequence[int] | None = None, dim: int = 0
    ) -> None:
        super().__init__()
        built = _built("product", parts)
        self.parts = _as_specs(parts, built)
        self.sizes = None if sizes is None else list(sizes)
        self.dim = dim
        if not isinstance(dim, int) or isinstance(dim, bool):
            raise TypeError(f"product: dim must be an integer, got {dim!r}.")
        if self.sizes is not None and len(self.sizes) != len(built):
            raise ValueError(
                f"product: {len(built)} parts need as many sizes, got {len(self.sizes)}."
            )
        if self.sizes is not None and not all(isinstance(s, int) and s > 0 for s in self.sizes):
            raise ValueError(f"product: sizes must be whole numbers from 1 on, got {self.sizes}.")
        self._parts = nn.ModuleList(built)
        whole = dim >= 0 or any(part.event_dim is None for part in built)
        self.event_dim = None if whole else max(-dim, *(_events(part) for part in built))
        self.closed = all(part.closed for part in built)  # type: ignore[misc]
        self.deterministic = all(part.deterministic for part in built)
        starts = [0, *accumulate(part.param_count() for part in built)]
        self._bounds = list(pairwise(starts))
        self.frozen = tuple(
            start + i
            for (start, _), part in zip(self._bounds, built, strict=True)
            for i in part.frozen
        )
        self.exempt = _inherited(built)

    def forward(self, *params: Tensor) -> Tensor:
        """Each part's element of its own parameters, side by side."""
        elements = [
            part(*params[start:end])
            for part, (start, end) in zip(self._each(), self._bounds, strict=True)
        ]
        return torch.cat(elements, self.dim)

    def right_inverse(self, value: Tensor) -> tuple[Tensor, ...]:
        """The parameters of all parts, one after another."""
        free: list[Tensor] = []
        for part, piece in self._slices(value):
            found = _unpack(unguarded(part, "right_inverse")(piece))
            if len(found) != part.param_count():
                raise TypeError(
                    f"product: {part!r} has {len(found)} free parameters, where the signature of "
                    f"its forward says {part.param_count()}."
                )
            free += [param.contiguous() for param in found]
        return tuple(free)

    def canonical(self, *params: Tensor) -> tuple[Tensor, ...]:
        """That of each part."""
        better: list[Tensor] = []
        for part, (start, end) in zip(self._each(), self._bounds, strict=True):
            better += part.canonical(*params[start:end])
        return tuple(better)

    def param_count(self) -> int:
        """Those of all parts."""
        return self._bounds[-1][1]

    def has_canonical(self) -> bool:
        """Whether some part has better parameters."""
        return any(part.has_canonical() for part in self._each())

    def violation(self, value: Tensor) -> Tensor:
        """The largest of the parts' violations."""
        batch = () if self.event_dim is None else value.shape[: value.ndim - self.event_dim]
        found = [part.violation(piece) for part, piece in self._slices(value)]
        return torch.stack([_largest(each, len(batch)) for each in found]).amax(0)

    def project(self, value: Tensor) -> Tensor:
        """Each slice projected by its part: nearest where all of these are."""
        pieces = [part.project(piece) for part, piece in self._slices(value)]
        return torch.cat(pieces, self.dim)

    def sample(
        self,
        shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Each slice sampled by its part, independently."""
        self.check_shape(shape)
        pieces = [
            part.sample(piece, generator=generator, dtype=dtype, device=device)
            for part, piece in zip(self._each(), self._shapes(tuple(shape)), strict=True)
        ]
        return torch.cat(pieces, self.dim)

    def dimension(self, shape: Sequence[int]) -> int:
        """The sum of the parts' dimensions."""
        total = 0
        for part, piece in zip(self._each(), self._shapes(tuple(shape)), strict=True):
            cut = len(piece) - _events(part, len(piece))
            total += torch.Size(piece[:cut]).numel() * part.dimension(piece[cut:])
        return total

    def shape_problem(self, event: tuple[int, ...]) -> str | None:
        """The slices fill the dimension, and each part admits its own."""
        if not -len(event) <= self.dim < len(event):
            return f"must have a dimension {self.dim}"
        length = event[self.dim]
        if self.sizes is None and length % len(self.parts):
            return f"must have a multiple of {len(self.parts)} entries along dimension {self.dim}"
        if self.sizes is not None and length != sum(self.sizes):
            return f"must have {sum(self.sizes)} entries along dimension {self.dim}"
        for i, (part, piece) in enumerate(zip(self._each(), self._shapes(event), strict=True)):
            count = _events(part, len(piece))
            problem = (
                f"must have at least {count} dimensions"
                if len(piece) < count
                else part.shape_problem(piece[len(piece) - count :])
            )
            if problem:
                return f"has a slice {i}, of shape {piece} for {part!r}, which {problem}"
        return None

    def _each(self) -> list[Constraint]:
        return list(self._parts)  # type: ignore[arg-type]

    def _lengths(self, total: int) -> list[int]:
        return self.sizes or [total // len(self.parts)] * len(self.parts)

    def _slices(self, value: Tensor) -> list[tuple[Constraint, Tensor]]:
        pieces = value.split(self._lengths(value.shape[self.dim]), self.dim)
        return list(zip(self._each(), pieces, strict=True))

    def _shapes(self, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
        place = self.dim % len(shape)
        return [
            (*shape[:place], length, *shape[place + 1 :])
            for length in self._lengths(shape[self.dim])
        ]


@register("chain")
class Chain(Constraint):
    """Several constraints on the same tensor, one map after another: ``"symmetric | ball"``.

    **Set**: the members of all parts' sets, A and B and ... Its dimension is that of the first
    part's set less the codimensions of the others.

    **Map**: that of the first part, then those of the others, each from a tensor to the one of its
    set that belongs to it, such as a nearest one. A map follows others only if its class declares
    that it keeps their sets (`Constraint.keeps`): ``positive_definite | special_linear`` scales a
    positive definite matrix to determinant one, ``symmetric | spectral_norm`` cuts the eigenvalues
    of a symmetric matrix. In the order that is not declared, or where none is, there is an error.
    Rounding errors that a map adds across a linear space are taken away; across other sets they
    stay, and grow with the condition of the matrix.

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

    def __init__(self, parts: Sequence[Any]) -> None:
        super().__init__()
        built = _built("chain", parts)
        if len(built) < 2:
            raise ValueError("chain: there must be two parts or more.")
        self.parts = _as_specs(parts, built)
        for i, part in enumerate(built[1:], start=1):
            for former in built[:i]:
                if former.name not in part.keeps:
                    kept = f"those of {', '.join(part.keeps)}" if part.keeps else "no others"
                    raise ValueError(
                        f"chain: the map of {part!r} does not keep the set of {former!r}, which "
                        f"comes before it; of the named sets it keeps {kept}."
                    )
        self._parts = nn.ModuleList(built)
        self.event_dim = max(_events(part) for part in built)
        self.closed = all(part.closed for part in built)  # type: ignore[misc]
        self.deterministic = all(part.deterministic for part in built)
        self.frozen = built[0].frozen
        kinks = _inherited(built)
        self.exempt = {
            **kinks,
            # A random member of the first set lies outside of the others, and ends on a boundary.
            **{k.replace(":boundary", ":random"): kinks[k] for k in kinks if ":boundary" in k},
            "nearest": "the nearest member of all sets has no formula: project() goes from one to "
            "the next",
        }

    def forward(self, *params: Tensor) -> Tensor:
        """The maps, one after another."""
        first, *others = self._each()
        value = first(*params)
        for part in others:
            value = part(value)
        # A linear map takes away what rounding has added across its space.
        return first(value) if isinstance(first, LinearSpace) else value

    def right_inverse(self, value: Tensor) -> Params:
        """The right inverses, from the last to the first."""
        first, *others = self._each()
        for part in reversed(others):
            (value,) = _unpack(unguarded(part, "right_inverse")(value))
        return unguarded(first, "right_inverse")(value)

    def canonical(self, *params: Tensor) -> tuple[Tensor, ...]:
        """That of the second part, if it follows a linear one alone; else that of the first."""
        first, *others = self._each()
        if not self._hands_over():
            return first.canonical(*params)
        with torch.no_grad():
            return others[0].canonical(first(*params))

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
        batch = value.ndim - _events(self)
        return torch.stack([_largest(part.violation(value), batch) for part in self._each()]).amax(
            0
        )

    def project(self, value: Tensor) -> Tensor:
        """A retraction: the parts' projections, one after another."""
        first, *others = self._each()
        value = first.project(value)
        for part in others:
            value = part.project(value)
        return first.project(value) if isinstance(first, LinearSpace) else value

    def sample(
        self,
        shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """A sample of the first part, projected by the others."""
        self.check_shape(shape)
        first, *others = self._each()
        value = first.sample(shape, generator=generator, dtype=dtype, device=device)
        for part in others:
            value = part.project(value)
        return first.project(value) if isinstance(first, LinearSpace) else value

    def dimension(self, shape: Sequence[int]) -> int:
        """The dimension of the first part's set, less the codimensions of the others."""
        event, space = tuple(shape), torch.Size(shape).numel()
        dimensions = []
        for part in self._each():
            cut = len(event) - _events(part)
            each = part.dimension(event[cut:])
            dimensions.append(torch.Size(event[:cut]).numel() * each)
        return dimensions[0] - sum(space - d for d in dimensions[1:])

    def shape_problem(self, event: tuple[int, ...]) -> str | None:
        """Every part admits it."""
        for part in self._each():
            problem = part.shape_problem(event[len(event) - _events(part) :])
            if problem:
                return f"{problem} (for {part!r})"
        return None

    def _each(self) -> list[Constraint]:
        return list(self._parts)  # type: ignore[arg-type]


def _built(name: str, parts: Sequence[Any]) -> list[Constraint]:
    if isinstance(parts, (str, Mapping)) or not isinstance(parts, Sequence) or not parts:
        raise ValueError(f"{name}: parts must be a list of constraints, got {parts!r}.")
    built = []
    for i, part in enumerate(parts):
        try:
            request = parse(part)
        except (SpecError, ValueError) as error:
            raise SpecError(f"{name}: part {i}: {error}") from None
        if request.view is not None or request.init is not None:
            raise SpecError(f"{name}: part {i} has a view or init, which belong to the whole.")
        if not isinstance(request.constraint, Constraint):
            raise SpecError(f"{name}: part {i} is no Constraint, but {request.constraint!r}.")
        built.append(request.build())
    return built


def _as_specs(parts: Sequence[Any], built: list[Constraint]) -> list[Any]:
    return [
        made.spec() if isinstance(part, Constraint) else part
        for part, made in zip(parts, built, strict=True)
    ]


def _events(part: Constraint, whole: int | None = None) -> int:
    """How many trailing dimensions make one element of a part."""
    if part.event_dim is not None:
        return part.event_dim
    if whole is None:
        raise ValueError(f"{part!r} takes the whole tensor for one element: it cannot be a part.")
    return whole


def _unpack(params: Params) -> tuple[Tensor, ...]:
    return (params,) if isinstance(params, Tensor) else tuple(params)


def _largest(violation: Tensor, batch: int) -> Tensor:
    """The largest violation of each element of the whole."""
    inner = tuple(range(batch, violation.ndim))
    if not inner:
        return violation
    return violation.amax(inner) if violation.numel() else violation.sum(inner)


def _inherited(parts: list[Constraint]) -> dict[str, str]:
    """What the laws exempt a part from, they exempt the whole from."""
    return {law: f"{part!r}: {reason}" for part in parts for law, reason in part.exempt.items()}
