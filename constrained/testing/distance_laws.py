"""Laws about distances: what `violation` measures, and which point `project` gives."""

from __future__ import annotations

import torch

from constrained.constraint.tolerance import tolerance
from constrained.testing.bounds import (
    STEPS,
    distance,
    expect_close,
    expect_member,
    far,
    half_precision,
    scale,
    size,
    slack,
)
from constrained.testing.case import Case, expect, unpack
from constrained.testing.points import candidates, members, near
from constrained.testing.runner import Scope, law


@law()
def violation_separates(case: Case) -> None:
    """The violation is positive exactly where `project` moves the value."""
    constraint = case.build()
    for name, value in candidates(case, constraint):
        violation = constraint.violation(value)
        expect(
            violation.shape == case.batch and not violation.is_complex(),
            case,
            f"violation({name}): expected real numbers of shape {case.batch}, "
            f"found {violation.dtype} of shape {tuple(violation.shape)}.",
        )
        expect((violation >= 0).all(), case, f"violation({name}): expected numbers >= 0.")
        nearby = constraint.project(value)
        moved = distance(value, nearby, case.event_dim)
        outside = far(nearby, value, case)
        missed = outside & (violation <= tolerance(value, case.event_dim))
        expect(
            not missed.any(),
            case,
            f"{name} is {float(moved.max()):.3g} away from its projection: "
            f"expected a violation, found {violation.tolist()}.",
        )
        still = moved <= tolerance(value, case.event_dim)
        invented = still & (violation > slack(value, case))
        expect(
            not invented.any(),
            case,
            f"{name} is left where it is by project(): "
            f"expected no violation, found {violation.tolist()}.",
        )


@law()
def violation_grows(case: Case) -> None:
    """The violation grows in proportion to the distance, not to its square.

    It doubles with the distance, both at a thousand tolerances from the set and at a hundredth of
    an element's size.
    """
    constraint = case.build()
    event_dim = case.event_dim
    for name, value in candidates(case, constraint):
        base = constraint.project(value)
        outside = far(base, value, case)
        if not outside.any():
            continue
        away = size(value - base, event_dim).clamp_min(torch.finfo(case.dtype).tiny)
        unit = (value - base) / away.reshape((*case.batch, *[1] * event_dim))
        for reach in (1e-2 * scale(case), 1e3 / STEPS * float(slack(base, case).amax())):
            near, twice = (constraint.violation(base + t * reach * unit) for t in (1, 2))
            expect(
                (near[outside] > 0).all(),
                case,
                f"{name}: expected a violation {reach:.3g} away from the projection, "
                f"found {near.tolist()}.",
            )
            ratio = (twice / near)[outside]
            expect(
                ((ratio > 1.5) & (ratio < 3)).all(),
                case,
                f"{name}: expected the violation to double from the distance {reach:.3g} of the "
                f"projection to twice that, found it multiplied by {ratio.tolist()}.",
            )


@law(Scope(effort="long"))
def projects(case: Case) -> None:
    """`project` gives a member and leaves members as they are, so it is idempotent."""
    constraint = case.build()
    for name, value in candidates(case, constraint):
        nearby = constraint.project(value)
        expect(
            nearby.shape == value.shape and nearby.dtype == value.dtype,
            case,
            f"project({name}): expected {value.dtype} of shape {tuple(value.shape)}, "
            f"found {nearby.dtype} of shape {tuple(nearby.shape)}.",
        )
        expect_member(nearby, case, constraint, f"project({name})")
        expect_close(constraint.project(nearby), nearby, case, f"project of project({name})")
    for name, value in members(case, constraint):
        expect_close(constraint.project(value), value, case, f"project of the member {name!r}")
    inside = case.sample(constraint)
    if not case.cls.closed:
        expect(
            torch.equal(constraint.project(inside), inside),
            case,
            "project of an interior element of an open set: expected it bit for bit.",
        )


@law(Scope(batches=((),)))
def nearest(case: Case) -> None:
    """No member is nearer than the projection, among random ones and the projection's neighbours.

    An open set may have no nearest member, so there it holds up to half of the digits only.
    """
    constraint = case.build()
    event_dim = case.event_dim
    others = [case.sample(constraint, f"other {i}") for i in range(20)]
    for name, value in candidates(case, constraint):
        nearby = constraint.project(value)
        start = unpack(constraint.right_inverse(nearby))
        neighbours = [
            constraint(*near(case, constraint, start, spread, salt=str(k)))
            for spread in (1e-3, 1e-2, 0.1)
            for k in range(4)
        ]
        margin = float(slack(value, case))
        if not case.cls.closed:
            margin = half_precision(case.dtype) * (float(size(value, event_dim)) + scale(case))
        reached = float(distance(value, nearby, event_dim))
        for other in [*others, *neighbours]:
            found = float(distance(value, other, event_dim))
            expect(
                found >= reached - margin,
                case,
                f"project({name}): expected a nearest member, found one at {found:.6g} "
                f"where the projection is {reached:.6g} away.",
            )


@law()
def slack_is_not_negative(case: Case) -> None:
    """Members lie on the boundary or inside: their slack is 0 or more, up to rounding."""
    constraint = case.build()
    for name, value in members(case, constraint):
        found = constraint.slack(value)
        if found is None:
            return
        expect(
            found.shape == case.batch and not found.is_complex(),
            case,
            f"slack({name}): expected real numbers of shape {case.batch}, "
            f"found {found.dtype} of shape {tuple(found.shape)}.",
        )
        expect(
            (found >= -slack(value, case)).all(),
            case,
            f"slack of the member {name!r}: expected numbers >= 0, found {found.tolist()}.",
        )
