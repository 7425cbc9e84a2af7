"""Laws about steps on the set: tangents, ways back, admissible gradients, weighted projections."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from constrained.constraint.tolerance import working_dtype
from constrained.testing.bounds import (
    distance,
    expect_close,
    expect_member,
    half_precision,
    scale,
    size,
    slack,
)
from constrained.testing.case import MEMBERS, Case, expect
from constrained.testing.points import candidates, member, points
from constrained.testing.runner import Scope, law

#: Steps along a tangent vector, in units of a typical element.
STEPS_ALONG = 1e-3, 1e-4

#: The standard deviations of the logarithms of weights.
SPREADS = 0.0, 1.0, 8.0


@law(Scope(points=MEMBERS))
def tangent_is_a_projection(case: Case) -> None:
    """`tangent` is linear, idempotent and self-adjoint, to three quarters of the digits."""
    constraint = case.build()
    if not constraint.is_smooth():
        return
    value = member(case, constraint, case.point or "random")
    v, w = case.gaussian(salt="v"), case.gaussian(salt="w")
    Tv, Tw = constraint.tangent(value, v), constraint.tangent(value, w)
    expect(
        Tv.shape == v.shape and Tv.dtype == v.dtype,
        case,
        f"tangent: expected {v.dtype} of shape {tuple(v.shape)}, "
        f"found {Tv.dtype} of shape {tuple(Tv.shape)}.",
    )
    allowed = _three_quarters(case) * (size(v, case.event_dim) + 2 * size(w, case.event_dim))
    for what, found, expected in (
        ("of a sum: expected the sum", constraint.tangent(value, v + 2 * w), Tv + 2 * Tw),
        ("of a tangent vector: expected it unchanged", constraint.tangent(value, Tv), Tv),
    ):
        error = distance(found, expected, case.event_dim)
        expect(
            (error <= allowed).all(),
            case,
            f"tangent {what}, found a difference of {float(error.max()):.3g}.",
        )
    error = (_inner(Tv, w, case.event_dim) - _inner(v, Tw, case.event_dim)).abs()
    expect(
        (error <= allowed * size(w, case.event_dim)).all(),
        case,
        f"tangent: expected <T v, w> = <v, T w>, found a difference of {float(error.max()):.3g}.",
    )


@law(Scope(dtypes=(torch.float64,), batches=((),), real=False))
def tangent_space_has_the_dimension(case: Case) -> None:
    """The trace of `tangent`, which is the rank of a projection, is the dimension of the set."""
    constraint = case.build()
    if not constraint.is_smooth():
        return
    entries = torch.Size(case.event).numel()
    basis = torch.eye(entries, dtype=case.dtype).reshape(entries, *case.event)
    directions = torch.cat([basis, 1j * basis]) if case.dtype.is_complex else basis
    value = case.sample(constraint)
    if constraint.event_dim is None:
        found = torch.stack([constraint.tangent(value, each) for each in directions])
    else:
        found = constraint.tangent(value.expand_as(directions), directions)
    trace = float(_inner(found, directions, case.event_dim).sum())
    dimension = constraint.dimension(case.event)
    expect(
        abs(trace - dimension) <= half_precision(case.dtype) * entries,
        case,
        f"tangent: expected a projection of the rank {dimension}, found the trace {trace:.6g}.",
    )


@law(Scope(dtypes=(torch.float64,), batches=((),)))
def tangents_lead_along_the_set(case: Case) -> None:
    """Along a tangent vector, the distance of a point from its retraction grows with the square."""
    constraint = case.build()
    if not constraint.is_smooth():
        return
    value = case.sample(constraint)
    vector = constraint.tangent(value, case.gaussian())
    length = size(vector, case.event_dim)
    if float(length) <= _three_quarters(case):
        return
    vector = vector * (scale(case) / length)
    far, near = (
        float(distance(constraint.retract(value + t * vector), value + t * vector, case.event_dim))
        for t in STEPS_ALONG
    )
    expect(
        near <= far / 50 + float(slack(value, case)),
        case,
        f"retract: expected it {far / 100:.3g} from a point {STEPS_ALONG[1]:g} along a tangent "
        f"vector, since it is {far:.3g} from one ten times as far, found it {near:.3g} away.",
    )


@law()
def retracts(case: Case) -> None:
    """`retract` leaves members, and brings what is near to a member hardly farther than nearest."""
    constraint = case.build()
    for point in points(case.cls, case.event_dim):
        if point in MEMBERS:
            value = member(case, constraint, point)
            expect_close(constraint.retract(value), value, case, f"retract of the member {point!r}")
    _, value = next(candidates(case, constraint))
    found, nearby = constraint.retract(value), constraint.project(value)
    expect_member(found, case, constraint, "retract of a member + 1e-2 * randn")
    moved, least = (distance(value, each, case.event_dim) for each in (found, nearby))
    expect(
        (moved <= 1.1 * least + slack(value, case)).all(),
        case,
        f"retract: expected a member about as near as the projection, {float(least.max()):.3g} "
        f"away, found one {float(moved.max()):.3g} away.",
    )


@law()
def admissible_gradients_descend(case: Case) -> None:
    """The inner product of a gradient with its `admissible` part is at least half the square.

    That holds for every projection onto the nearest member, and makes steps descend. Where there is
    no formula for the nearest one, it is only not negative.
    """
    constraint = case.build()
    if constraint.why_not_project:
        return
    share = 0.0 if "nearest" in constraint.expected_failures else 0.5
    gradient = case.gaussian(salt="gradient")
    for point in points(case.cls, case.event_dim):
        if point not in MEMBERS:
            continue
        value = member(case, constraint, point)
        for sign in (1, -1):
            found = constraint.admissible(value, sign * gradient)
            expect(
                found.shape == gradient.shape and found.dtype == gradient.dtype,
                case,
                f"admissible: expected {gradient.dtype} of shape {tuple(gradient.shape)}, "
                f"found {found.dtype} of shape {tuple(found.shape)}.",
            )
            along = _inner(found, sign * gradient, case.event_dim)
            square = size(found, case.event_dim).square()
            allowed = _three_quarters(case) * size(gradient, case.event_dim).square()
            expect(
                (along >= share * square - allowed).all(),
                case,
                f"admissible at {point!r}: expected an inner product with the gradient of at least "
                f"{float((share * square).max()):.3g}, found {float(along.min()):.3g}.",
            )


@law(Scope(batches=((),)))
def admissible_gradients_vanish(case: Case) -> None:
    """At the member nearest to a tensor, the gradient of the distance has no admissible part.

    In an open set there may be no nearest member, and a part of 1 % is allowed. Rounding errors of
    the projection count in units of a tenth of the member, over which gradients are looked at.
    """
    constraint = case.build()
    if constraint.why_not_project:
        return
    if "nearest" in constraint.expected_failures:
        return
    for name, value in candidates(case, constraint):
        nearby = constraint.project(value)
        gradient = nearby - value
        length = float(size(gradient, case.event_dim))
        if length <= half_precision(case.dtype) * scale(case):
            continue
        left = float(size(constraint.admissible(nearby, gradient), case.event_dim))
        share = 10 * half_precision(case.dtype) if case.cls.closed else 1e-2
        reach = 0.1 * float(size(nearby, case.event_dim).clamp(min=1e-3))
        allowed = (share + float(slack(value, case)) / reach) * length
        expect(
            left <= allowed,
            case,
            f"admissible at project({name}): expected at most {allowed:.3g} of the gradient "
            f"of the distance, which is {length:.3g} long, found {left:.3g}.",
        )


@law()
def scaled_projection_is_nearest(case: Case) -> None:
    """`project_scaled` gives the nearest member in the metric of the weights, whatever these are.

    For a convex set that is a z with ``<s (x - z), y - z> <= 0`` for all members y.
    """
    constraint = case.build()
    if "nearest" in constraint.expected_failures:
        return
    others = [case.sample(constraint, f"other {i}") for i in range(8)]
    for name, value in candidates(case, constraint):
        plain = constraint.project_scaled(value, torch.ones_like(value))
        if plain is None:
            return
        expected = constraint.project(value)
        error = distance(plain, expected, case.event_dim)
        expect(
            (error <= slack(value, case) + slack(expected, case)).all(),
            case,
            f"project_scaled({name}) with the weights 1: expected the projection, found a tensor "
            f"{float(error.max()):.3g} away.",
        )
        for weights in _weights(case):
            found = constraint.project_scaled(value, weights)
            assert found is not None
            expect_member(found, case, constraint, f"project_scaled({name})")
            neighbour = constraint.project(found + 1e-2 * case.gaussian(salt="neighbour"))
            for other in [*others, neighbour]:
                _expect_nearest(case, name, value, weights, found, other)


def _expect_nearest(
    case: Case, name: str, value: Tensor, weights: Tensor, found: Tensor, other: Tensor
) -> None:
    """Raise unless a step from what was found towards another member leads away from the value."""
    wide = torch.complex128 if case.dtype.is_complex else torch.float64
    value, weights, found, other = (t.to(wide) for t in (value, weights, found, other))
    weights = weights / weights.abs().amax()
    along = _inner(weights * (value - found), other - found, case.event_dim)
    # What changes if each entry of the result has an error of its size.
    sizes = value.abs() + found.abs() + other.abs() + scale(case)
    moved = (value - found).abs() + (other - found).abs()
    # An open set has a nearest member up to half of the digits only.
    exactness = _three_quarters(case) if case.cls.closed else half_precision(case.dtype)
    allowed = exactness * _inner(weights.abs() * sizes, moved, case.event_dim)
    expect(
        (along <= allowed).all(),
        case,
        f"project_scaled({name}): expected the nearest member in the metric of the weights, found "
        f"a nearer one: the inner product is {float((along - allowed).max()):.3g} too large.",
    )


def _weights(case: Case) -> Iterator[Tensor]:
    """Weights from 1e-30 to 1e30, of the dtype of the tensor, as an optimizer has them."""
    for spread in SPREADS:
        for unit in (1.0, 1e-30, 1e30):
            logarithms = spread * case.gaussian(salt=f"weights {spread}").real.double()
            yield (unit * logarithms.exp()).clamp(1e-30, 1e30).to(case.dtype)


def _inner(a: Tensor, b: Tensor, event_dim: int) -> Tensor:
    """The real inner product of each pair of elements, of shape ``batch``."""
    product = (a.conj() * b).real
    product = product.to(working_dtype(product.dtype))
    return product.flatten(product.ndim - event_dim).sum(-1) if event_dim else product


def _three_quarters(case: Case) -> float:
    """The relative error of a result with three quarters of the digits."""
    return torch.finfo(working_dtype(case.dtype)).eps ** 0.75
