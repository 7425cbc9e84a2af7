"""Laws about what optimizers on sets use: gradients, moves, transport, steepest directions."""

from __future__ import annotations

import torch
from torch import Tensor

from constrained.constraint.base import Constraint
from constrained.constraint.tolerance import working_dtype
from constrained.testing.bounds import distance, expect_close, expect_member, scale, size
from constrained.testing.case import Case, expect
from constrained.testing.runner import Scope, law

#: The length of a short step, in units of a typical element, and of those that laws walk.
_SHORT, _LENGTHS = 1e-4, (1e-3, 0.1, 1.0)

_DOUBLE = Scope(dtypes=(torch.float64,))


@law(_DOUBLE)
def gradients_represent_derivatives(case: Case) -> None:
    """The inner product of `riemannian_gradient` with a tangent vector is the derivative along it.

    That is the derivative of a linear function along the curve that `move` makes.
    """
    constraint = case.build()
    if constraint.has_boundary():
        return
    value, gradient = case.sample(constraint), case.gaussian(salt="gradient")
    vector = _tangent(case, constraint, value)
    along = _inner(constraint.riemannian_gradient(value, gradient), vector, case.event_dim)
    ahead, behind = (constraint.move(value, t * vector) for t in (_SHORT, -_SHORT))
    expected = _inner(gradient, (ahead - behind) / (2 * _SHORT), case.event_dim)
    allowed = 100 * _SHORT**2 * size(gradient, case.event_dim) * scale(case)
    error = (along - expected).abs()
    expect(
        (error <= allowed).all(),
        case,
        f"riemannian_gradient: expected the derivative {float(expected.flatten()[0]):.6g} along a "
        f"tangent vector, found {float(along.flatten()[0]):.6g}.",
    )


@law(_DOUBLE)
def moves_stay_in_the_set(case: Case) -> None:
    """`move` ends in the set, and where it begins for the vector zero."""
    constraint = case.build()
    if constraint.has_boundary():
        return
    value = case.sample(constraint)
    vector = _tangent(case, constraint, value)
    expect_close(constraint.move(value, 0 * vector), value, case, "move along zero")
    for t in _LENGTHS:
        end = constraint.move(value, t * vector)
        expect_member(end, case, constraint, f"move along a tangent vector of length {t:g}")


@law(_DOUBLE)
def transports(case: Case) -> None:
    """`transport` is linear, gives tangent vectors, and keeps a vector that stays where it is.

    After a short move, inner products have changed by no more than in proportion to its length.
    """
    constraint = case.build()
    if constraint.has_boundary():
        return
    value = case.sample(constraint)
    v, w = _tangent(case, constraint, value), _tangent(case, constraint, value, "w")
    near = constraint.move(value, _SHORT * v)
    Tv, Tw = constraint.transport(v, near), constraint.transport(w, near)
    allowed = _three_quarters(case) * (
        size(v, case.event_dim) + 2 * size(w, case.event_dim) + scale(case)
    )
    for what, found, expected in (
        ("to the same member: expected the vector", constraint.transport(v, value), v),
        ("of a sum: expected the sum", constraint.transport(v + 2 * w, near), Tv + 2 * Tw),
        ("of a tangent vector: expected it unchanged", constraint.transport(Tv, near), Tv),
    ):
        error = distance(found, expected, case.event_dim)
        expect(
            (error <= allowed).all(),
            case,
            f"transport {what}, found a difference of {float(error.max()):.3g}.",
        )
    if constraint.is_smooth():
        off = distance(constraint.tangent(near, Tv), Tv, case.event_dim)
        expect(
            (off <= allowed).all(),
            case,
            f"transport: expected a tangent vector, found one {float(off.max()):.3g} off.",
        )
    before = _inner(v, w, case.event_dim)
    change = (_inner(Tv, Tw, case.event_dim) - before).abs()
    expect(
        (change <= 1e3 * _SHORT * scale(case) ** 2).all(),
        case,
        f"transport by {_SHORT:g}: expected an inner product near "
        f"{float(before.flatten()[0]):.3g}, found it {float(change.max()):.3g} away.",
    )


@law()
def steepest_directions_are_tangent(case: Case) -> None:
    """`steepest` leads along the set, is no longer than the member, and is blind to scale."""
    constraint = case.build()
    if not constraint.has_steepest():
        return
    value, gradient = case.sample(constraint), case.gaussian(salt="gradient")
    found = _steepest(case, constraint, value, gradient)
    allowed = _three_quarters(case) * scale(case)
    off = distance(constraint.tangent(value, found), found, case.event_dim)
    expect(
        (off <= allowed).all(),
        case,
        f"steepest: expected a tangent vector, found one {float(off.max()):.3g} off.",
    )
    length, most = size(found, case.event_dim), size(value, case.event_dim)
    expect(
        (length <= most + allowed).all(),
        case,
        f"steepest: expected it no longer than the member, {float(most.max()):.3g}, found "
        f"{float(length.max()):.3g}.",
    )
    for what, other in (
        ("1024 times the gradient", 1024 * gradient),
        ("its tangent part", constraint.tangent(value, gradient)),
    ):
        apart = distance(_steepest(case, constraint, value, other), found, case.event_dim)
        # Where the tangent part is small against the gradient, rounding turns the direction.
        share = size(constraint.tangent(value, gradient), case.event_dim)
        share = share / size(gradient, case.event_dim)
        expect(
            ((apart <= allowed / share) | (share <= allowed)).all(),
            case,
            f"steepest of {what}: expected the same direction, found one {float(apart.max()):.3g} "
            "away.",
        )


@law()
def steepest_directions_are_steepest(case: Case) -> None:
    """No direction that is steepest for another gradient is steeper for this one.

    So the decrease is the dual norm of the gradient. It is at least the product of the Frobenius
    norms of its tangent part and of the member, divided by the root of the number of entries: the
    least that a norm gives which lies between the largest entry and the Frobenius norm.
    """
    constraint = case.build()
    if not constraint.has_steepest():
        return
    value, gradient = case.sample(constraint), case.gaussian(salt="gradient")
    best = _inner(gradient, _steepest(case, constraint, value, gradient), case.event_dim)
    tangent = size(constraint.tangent(value, gradient), case.event_dim)
    allowed = _three_quarters(case) * size(gradient, case.event_dim) * scale(case)
    entries = max(1, torch.Size(case.event).numel())
    least = tangent * size(value, case.event_dim) / entries**0.5
    expect(
        (-best >= least - allowed).all(),
        case,
        f"steepest: expected a decrease of at least {float(least.max()):.3g}, found "
        f"{float(-best.max()):.3g}.",
    )
    for i in range(16):
        # Half of them are not far from the gradient.
        near = gradient + 0.5 * case.gaussian(salt=f"near {i}")
        other = near if i % 2 else case.gaussian(salt=f"other {i}")
        other = _steepest(case, constraint, value, other)
        for sign in (1, -1):
            decrease = _inner(gradient, sign * other, case.event_dim)
            expect(
                (best <= decrease + allowed).all(),
                case,
                f"steepest: expected no decrease larger than {float(-best.min()):.3g}, found "
                f"{float(-decrease.min()):.3g} along that of another gradient.",
            )


def _tangent(case: Case, constraint: Constraint, value: Tensor, salt: str = "v") -> Tensor:
    """A tangent vector with the length of a typical element."""
    vector = constraint.riemannian_gradient(value, case.gaussian(salt=salt))
    length = size(vector, case.event_dim)
    factor = torch.where(length > _three_quarters(case), scale(case) / length, 0)
    return vector * factor.reshape((*case.batch, *(1,) * case.event_dim)).to(vector.dtype)


def _steepest(case: Case, constraint: Constraint, value: Tensor, gradient: Tensor) -> Tensor:
    found = constraint.steepest(value, gradient)
    assert found is not None
    expect(
        found.shape == gradient.shape and found.dtype == gradient.dtype,
        case,
        f"steepest: expected {gradient.dtype} of shape {tuple(gradient.shape)}, found "
        f"{found.dtype} of shape {tuple(found.shape)}.",
    )
    return found


def _inner(a: Tensor, b: Tensor, event_dim: int) -> Tensor:
    """The real inner product of each pair of elements, of shape ``batch``."""
    product = (a.conj() * b).real
    product = product.to(working_dtype(product.dtype))
    return product.flatten(product.ndim - event_dim).sum(-1) if event_dim else product


def _three_quarters(case: Case) -> float:
    """The relative error of a result with three quarters of the digits."""
    return torch.finfo(working_dtype(case.dtype)).eps ** 0.75
