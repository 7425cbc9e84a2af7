"""Constraints that are made of others: their parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from constrained import Constraint
from constrained.constraint.base import unguarded
from constrained.constraint.elements import Params
from constrained.constraint.errors import SpecError
from constrained.constraint.spec import parse
from constraints.bases.boundary import relax_to_boundary


def build_parts(name: str, parts: Sequence[Any]) -> list[Constraint]:
    """The constraints of a list of specs, or an error that says which one is wrong."""
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


def spelled(parts: Sequence[Any], built: list[Constraint]) -> list[tuple[Any, dict[str, Any]]]:
    """How each part was given, as plain data, and the spec that this means."""
    specs = [made.spec() for made in built]
    return [
        (spec if isinstance(part, Constraint) else part, spec)
        for part, spec in zip(parts, specs, strict=True)
    ]


def as_specs(given: list[tuple[Any, dict[str, Any]]], parts: list[Constraint]) -> list[Any]:
    """The parts as plain data: as they were given, until an argument of one is set."""
    return [
        spelling if part.spec() == meant else part.spec()
        for (spelling, meant), part in zip(given, parts, strict=True)
    ]


def events(part: Constraint, whole: int | None = None) -> int:
    """How many trailing dimensions make one element of a part."""
    if part.event_dim is not None:
        return part.event_dim
    if whole is None:
        raise ValueError(f"{part!r} takes the whole tensor for one element: it cannot be a part.")
    return whole


def unpack(params: Params) -> tuple[Tensor, ...]:
    """The result of a right inverse as a tuple."""
    return (params,) if isinstance(params, Tensor) else tuple(params)


def largest(violation: Tensor, batch: int) -> Tensor:
    """The largest violation of each element of the whole."""
    inner = tuple(range(batch, violation.ndim))
    if not inner:
        return violation
    return violation.amax(inner) if violation.numel() else violation.sum(inner)


def inherited(parts: list[Constraint]) -> dict[str, str]:
    """What the laws exempt a part from, they exempt the whole from."""
    return {
        law: f"{part!r}: {reason}"
        for part in parts
        for law, reason in part.expected_failures.items()
    }


def canonical(part: Constraint, *params: Tensor) -> tuple[Tensor, ...]:
    """Better parameters of a part.

    Where a step is made of something else than the gradient, that leads away from a boundary. It is
    not asked of a part, so that its parameter goes back to the boundary little by little.
    """
    if not part.has_step_gradient():
        return part.canonical(*params)
    X, *constants = params
    if constants:
        # Such as directions, which have to follow the parameter.
        member, *constants = part.canonical(*params)
    else:
        # NaN is no reason to stop.
        member = unguarded(part, "project")(X)
    dim = X.ndim if part.event_dim is None else part.event_dim
    return relax_to_boundary(X, member, dim), *constants
