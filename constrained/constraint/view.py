"""A constraint on a rearrangement of a tensor, given by an einops pattern."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from einops import EinopsError, rearrange
from einops import parse_shape as _parse_shape  # pyright: ignore[reportUnknownVariableType] - bare
from torch import Tensor

from constrained.constraint.base import FLAT, Constraint, unguarded
from constrained.constraint.elements import Params
from constrained.constraint.linear_form import LinearForm
from constrained.constraint.plain_data import short
from constrained.constraint.sampling import RandomNumbers

#: einops is slow with a longer pattern.
_LONGEST = 1_000


def axes(pattern: str) -> set[str]:
    """The names of the axes in an einops pattern."""
    return set(re.findall(r"[A-Za-z]\w*", pattern))


def with_view(spec: dict[str, Any], view: str, sizes: Mapping[str, int]) -> dict[str, Any]:
    """A spec with a view; lengths of axes that are named like arguments in a mapping of theirs."""
    lengths = {"axes": dict(sizes)} if set(sizes) & set(spec) else sizes
    return {**spec, "view": view, **lengths}


class View(Constraint):
    """A constraint on a rearrangement of the tensor. The whole tensor is one element.

    **Set**: all ``X`` whose rearrangement by ``pattern`` has its elements in the set of
    ``constraint``; it is open or closed as that set is.
    **Map**: the map of ``constraint``, then rearranged back.
    **Right inverse**: rearranged, then the right inverse of ``constraint``.
    **Reference**: Rogozhnikov, "Einops: Clear and Reliable Tensor Manipulations with Einstein-like
    Notation" (ICLR 2022).

    Args:
        constraint: the constraint on the rearranged tensor.
        pattern: ``"from -> to"``. The elements are made of the last dimensions of ``to``; a whole
            number is an axis of that length: ``"(4 h) k -> 4 h k"`` gives the gates of an LSTM.
        shape: the shape of the tensor before it is rearranged.
        sizes: the lengths of axes that do not follow from the shape.

    Raises:
        ValueError: if the pattern is malformed or does not fit the shape.
    """

    def __init__(
        self,
        constraint: Constraint,
        pattern: str,
        shape: Sequence[int],
        sizes: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        self.constraint = constraint
        self.pattern = pattern
        self.shape = tuple(shape)
        self.sizes = dict(sizes or {})
        self.event_dim = len(self.shape)
        self._there, self._back, self._lengths = _parse(pattern, self.shape, self.sizes)
        constraint.check_shape(self.seen_shape())

    @property
    def frozen(self) -> tuple[int, ...]:  # type: ignore[override]
        """The frozen parameters of ``constraint``."""
        return self.constraint.frozen

    @property
    def deterministic(self) -> bool:  # type: ignore[override]
        """Whether ``constraint`` is deterministic."""
        return self.constraint.deterministic

    def seen_shape(self) -> torch.Size:
        """The shape of the rearranged tensor."""
        return self.rearranged(torch.empty(self.shape, device="meta")).shape

    def rearranged(self, value: Tensor) -> Tensor:
        """The tensor rearranged by the pattern."""
        return rearrange(value, self._there, **self._lengths)

    def forward(self, *params: Tensor) -> Tensor:
        """Map free parameters to the tensor, rearranged back."""
        return rearrange(self.constraint(*params), self._back, **self._lengths)

    def rounded(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        """Round as ``constraint`` does."""
        rounded = self.constraint.rounded(self.rearranged(value), dtype)
        return rearrange(rounded, self._back, **self._lengths)

    def right_inverse(self, value: Tensor) -> Params:
        """Free parameters of the rearranged tensor."""
        # Without the guard of ``constraint``: the guard here has checked the value.
        return unguarded(self.constraint, "right_inverse")(self.rearranged(value))

    def violation(self, value: Tensor) -> Tensor:
        """The largest violation of an element of the rearranged tensor; a scalar."""
        return self.constraint.violation(self.rearranged(value)).amax()

    def slack(self, value: Tensor) -> Tensor | None:
        """The least slack of an element of the rearranged tensor; a scalar."""
        found = self.constraint.slack(self.rearranged(value))
        return None if found is None else found.amin()

    def project(self, value: Tensor) -> Tensor:
        """Project the rearranged tensor, and rearrange it back."""
        return rearrange(
            self.constraint.project(self.rearranged(value)), self._back, **self._lengths
        )

    def tangent(self, value: Tensor, vector: Tensor) -> Tensor:
        """Project the rearranged vector, and rearrange it back."""
        found = self.constraint.tangent(self.rearranged(value), self.rearranged(vector))
        return rearrange(found, self._back, **self._lengths)

    def is_smooth(self) -> bool:
        """Whether the set of ``constraint`` is smooth."""
        return self.constraint.is_smooth()

    def retract(self, value: Tensor) -> Tensor:
        """Bring the rearranged tensor back, and rearrange it back."""
        found = self.constraint.retract(self.rearranged(value))
        return rearrange(found, self._back, **self._lengths)

    def nearby(self, value: Tensor) -> Tensor:
        """Members near the rearranged tensor, rearranged back."""
        return rearrange(
            self.constraint.nearby(self.rearranged(value)), self._back, **self._lengths
        )

    def project_scaled(self, value: Tensor, scale: Tensor) -> Tensor | None:
        """Project the rearranged tensor, and rearrange it back."""
        found = self.constraint.project_scaled(self.rearranged(value), self.rearranged(scale))
        return None if found is None else rearrange(found, self._back, **self._lengths)

    def linear_form(self, shape: Sequence[int]) -> LinearForm | None:
        """The form of each element of the rearranged tensor, with its entries in their places."""
        entries = torch.arange(torch.Size(shape).numel()).reshape(tuple(shape))
        places = self.rearranged(entries)
        event = places.shape[places.ndim - (self.constraint.event_dim or 0) :]
        if self.constraint.event_dim is None:
            event = places.shape
        form = self.constraint.linear_form(event)
        bounds = () if form is None else (form.low, form.high)
        if form is None or form.image is not None or any(isinstance(b, Tensor) for b in bounds):
            return None
        if form.matrix is None or form.lower is None or form.upper is None:
            return form
        places = places.reshape(-1, event.numel())
        matrix = form.matrix.new_zeros(len(places), len(form.matrix), entries.numel())
        matrix.scatter_(
            2,
            places[:, None].expand(-1, len(form.matrix), -1),
            form.matrix.expand(len(places), -1, -1),
        )
        lower, upper = (side.repeat(len(places)) for side in (form.lower, form.upper))
        return LinearForm(form.low, form.high, matrix.flatten(0, 1), lower, upper)

    def admissible(self, value: Tensor, gradient: Tensor) -> Tensor:
        """Make the rearranged gradient admissible, and rearrange it back."""
        found = self.constraint.admissible(self.rearranged(value), self.rearranged(gradient))
        return rearrange(found, self._back, **self._lengths)

    def has_boundary(self) -> bool:
        """Whether the set of ``constraint`` has a boundary."""
        return self.constraint.has_boundary()

    def riemannian_gradient(self, value: Tensor, gradient: Tensor) -> Tensor:
        """The gradient of the rearranged tensor, rearranged back."""
        found = self.constraint.riemannian_gradient(*map(self.rearranged, (value, gradient)))
        return rearrange(found, self._back, **self._lengths)

    def move(self, value: Tensor, vector: Tensor) -> Tensor:
        """Move the rearranged tensor, and rearrange it back."""
        found = self.constraint.move(*map(self.rearranged, (value, vector)))
        return rearrange(found, self._back, **self._lengths)

    def transport(self, vector: Tensor, new: Tensor) -> Tensor:
        """Transport the rearranged vector, and rearrange it back."""
        found = self.constraint.transport(*map(self.rearranged, (vector, new)))
        return rearrange(found, self._back, **self._lengths)

    def inwards(self, value: Tensor, share: float) -> Tensor:
        """Move the elements of the rearranged tensor."""
        moved = self.constraint.inwards(self.rearranged(value), share)
        return rearrange(moved, self._back, **self._lengths)

    def start(self, value: Tensor) -> Tensor:
        """Where the elements of the rearranged tensor start."""
        self.check_tensor(value)
        return rearrange(self.constraint.start(self.rearranged(value)), self._back, **self._lengths)

    def flat(self, value: Tensor, share: float = FLAT) -> Tensor:
        """Which elements of the rearranged tensor lie where the derivative vanishes."""
        return self.constraint.flat(self.rearranged(value), share)

    def draw(self, shape: tuple[int, ...], random: RandomNumbers) -> Tensor:
        """A random tensor whose rearrangement is distributed as ``constraint`` says."""
        seen = self.seen_shape()
        return rearrange(random.member(self.constraint, seen), self._back, **self._lengths)

    def dimension(self, shape: Sequence[int]) -> int:
        """The sum of the dimensions of all elements of the rearranged tensor."""
        inner = self.rearranged(torch.empty(tuple(shape), device="meta")).shape
        event_dim = self.constraint.event_dim
        split = 0 if event_dim is None else len(inner) - event_dim
        return inner[:split].numel() * self.constraint.dimension(inner[split:])

    def canonical(self, *params: Tensor) -> tuple[Tensor, ...]:
        """The canonical parameters of ``constraint``."""
        return self.constraint.canonical(*params)

    def restored_together(self, count: int) -> Sequence[Sequence[int]]:
        """The groups of ``constraint``."""
        return self.constraint.restored_together(count)

    def has_canonical(self) -> bool:
        """Whether ``constraint`` has canonical parameters."""
        return self.constraint.has_canonical()

    def step_gradient(self, gradient: Tensor, *params: Tensor) -> Tensor:
        """The step gradient of ``constraint``, whose parameters these are."""
        return self.constraint.step_gradient(gradient, *params)

    def has_step_gradient(self) -> bool:
        """Whether ``constraint`` has a step gradient."""
        return self.constraint.has_step_gradient()

    def steepest(self, value: Tensor, gradient: Tensor) -> Tensor | None:
        """The steepest direction of the rearranged tensor, rearranged back."""
        found = self.constraint.steepest(self.rearranged(value), self.rearranged(gradient))
        return None if found is None else rearrange(found, self._back, **self._lengths)

    def has_steepest(self) -> bool:
        """Whether ``constraint`` has steepest directions."""
        return self.constraint.has_steepest()

    def shape_problem(self, event: tuple[int, ...]) -> str | None:
        """Only the shape that was given to the constructor fits."""
        return None if event == self.shape else f"must have the shape {self.shape}"

    def check_member(self, value: Tensor) -> None:
        """Raise the error of ``constraint`` unless all elements lie in the set."""
        self.check_tensor(value)
        self.constraint.check_member(self.rearranged(value))

    def measured(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """The violation and tolerance of each element of the rearranged tensor."""
        return self.constraint.measured(self.rearranged(value))

    def contains(self, value: Tensor, tol: float | None = None) -> Tensor:
        """Whether all elements of the rearranged tensor lie in the set; a scalar."""
        return self.constraint.contains(self.rearranged(value), tol).all()

    def spec(self) -> dict[str, Any]:
        """The spec of ``constraint``, with the view."""
        return with_view(self.constraint.spec(), self.pattern, self.sizes)

    def __repr__(self) -> str:
        return f"{self.constraint!r} viewed as {self.pattern!r}"


def _parse(
    pattern: str, shape: tuple[int, ...], sizes: Mapping[str, int]
) -> tuple[str, str, dict[str, int]]:
    """The pattern, its reverse, and the length of every axis in it."""
    left, arrow, right = pattern.partition("->")
    if not arrow or "->" in right or "..." in pattern or len(pattern) > _LONGEST:
        raise ValueError(
            f"The view {short(pattern)} must read 'from -> to', with all axes named, as in "
            "'o i h w -> o (i h w)'."
        )
    # einops names every axis: 4 becomes an axis of that length.
    numbers = {n: f"axis{n}" for n in re.findall(r"(?<!\w)\d+(?!\w)", pattern) if n != "1"}
    left, right = (
        re.sub(r"(?<!\w)\d+(?!\w)", lambda m: numbers.get(m[0], m[0]), side).strip()
        for side in (left, right)
    )
    given = {**sizes, **{name: int(n) for n, name in numbers.items()}}
    size: Any
    for name, size in given.items():
        if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size < 2**63:
            raise ValueError(
                f"The axis '{name}' of the view {pattern!r} must be a positive whole number, got "
                f"{short(size)}."
            )
    whole = torch.empty(shape, device="meta")
    flat = " ".join(re.sub(r"[()]", " ", left).split())
    try:
        lengths: dict[str, int] = cast(Any, _parse_shape)(
            rearrange(whole, f"{left} -> {flat}", **given), flat
        )
        rearrange(whole, f"{left} -> {right}", **lengths)
    except EinopsError as error:
        reason = str(error).strip().splitlines()[-1].strip().rstrip(".")
        cure = ""
        if "infer" in reason:
            cure = " Give their lengths beside the view, as in view='(g h) k -> g h k', g=4."
        raise ValueError(
            f"The view {pattern!r} does not fit a tensor of shape {shape}: {reason}.{cure}"
        ) from None
    return f"{left} -> {right}", f"{right} -> {left}", lengths
