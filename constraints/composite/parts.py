"""Base of constraints that are made of other constraints, their parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from constrained import Constraint
from constrained.constraint.base import unguarded
from constrained.constraint.errors import SpecError
from constrained.constraint.spec import parse
from constraints.bases.boundary import relax_to_boundary


def build_parts(name: str, parts: Sequence[Any]) -> list[Constraint]:
    """The constraints of a list of specs, or an error that says which one is wrong."""
    if isinstance(parts, (str, Mapping)) or not isinstance(parts, Sequence) or not parts:  # pyright: ignore[reportUnnecessaryIsInstance] - callers may be untyped
        raise ValueError(f"{name}: parts must be a list of constraints, got {parts!r}.")
    built: list[Constraint] = []
    for i, part in enumerate(parts):
        try:
            request = parse(part)
        except (SpecError, ValueError) as error:
            raise SpecError(f"{name}: part {i}: {error}") from None
        if request.view is not None or request.init is not None:
            raise SpecError(f"{name}: part {i} has a view or init, which belong to the whole.")
        if not isinstance(request.constraint, Constraint):
            raise SpecError(f"{name}: part {i} is no Constraint, but {request.constraint!r}.")
        built.append(request.build())  # pyright: ignore[reportArgumentType] - it copies the constraint checked above
    return built


class Composite(Constraint):
    """Base of constraints that are made of others, their parts.

    Attributes that depend on the parts are computed at each read, since a part may be changed.
    """

    def _take(self, parts: Sequence[Any], built: list[Constraint]) -> None:
        """Store the parts, and the form in which each was given."""
        specs = [part.spec() for part in built]
        self._given = [
            (spec if isinstance(part, Constraint) else part, spec)
            for part, spec in zip(parts, specs, strict=True)
        ]
        self._parts = nn.ModuleList(built)

    def _each(self) -> list[Constraint]:
        return list(self._parts)  # type: ignore[arg-type] - torch types them as plain modules

    @property
    def parts(self) -> list[Any]:
        """The parts as plain data: each as it was given, or its spec if it has changed since."""
        return [
            spelling if part.spec() == meant else part.spec()
            for (spelling, meant), part in zip(self._given, self._each(), strict=True)
        ]

    @property
    def closed(self) -> bool:  # type: ignore[override] - computed from the parts
        """Whether all parts are closed."""
        return all(part.closed for part in self._each())

    @property
    def deterministic(self) -> bool:  # type: ignore[override] - computed from the parts
        """Whether all parts are deterministic."""
        return all(part.deterministic for part in self._each())


def events(part: Constraint, whole: int | None = None) -> int:
    """How many trailing dimensions make one element of a part."""
    if part.event_dim is not None:
        return part.event_dim
    if whole is None:
        raise ValueError(f"{part!r} takes the whole tensor for one element: it cannot be a part.")
    return whole


def largest(violation: Tensor, batch: int) -> Tensor:
    """The largest violation of each element of the whole."""
    inner = tuple(range(batch, violation.ndim))
    if not inner:
        return violation
    return violation.amax(inner) if violation.numel() else violation.sum(inner)


def least(slacks: Sequence[Tensor | None], batch: int) -> Tensor | None:
    """The least slack of each element of the whole, among the parts that have one."""
    known = [-largest(-slack, batch) for slack in slacks if slack is not None]
    return torch.stack(known).amin(0) if known else None


def inherited(parts: list[Constraint]) -> dict[str, str]:
    """The laws that fail for a part, and so for the whole."""
    return {
        law: f"{part!r}: {reason}"
        for part in parts
        for law, reason in part.expected_failures.items()
    }


def canonical(part: Constraint, *params: Tensor) -> tuple[Tensor, ...]:
    """Canonical parameters of a part.

    `step_gradient`, which lets a constraint leave its boundary, is not called for parts. So a part
    that defines it is moved back to the boundary little by little: see `relax_to_boundary`.
    """
    if not part.has_step_gradient():
        return part.canonical(*params)
    X, *constants = params
    if constants:
        # The constants, such as directions, depend on the parameter.
        member, *constants = part.canonical(*params)
    else:
        # Without the checks of arguments, which raise for NaN.
        member = unguarded(part, "project")(X)
    dim = X.ndim if part.event_dim is None else part.event_dim
    return relax_to_boundary(X, member, dim), *constants
