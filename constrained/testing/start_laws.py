"""Laws about `Constraint.start`: it keeps members and moves outsiders to where they can train."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from constrained.constraint.base import FLAT, Constraint
from constrained.testing.bounds import expect_member
from constrained.testing.case import Case, expect, unpack
from constrained.testing.derivative_laws import singular_values_at
from constrained.testing.points import member, members
from constrained.testing.runner import Scope, law
from constrained.torch_internals import linalg

#: The least derivative at a start, as a share of the one at a typical member.
ENOUGH = 0.01

#: How many times the condition number of samples a start may have.
WORSE = 100.0

#: Points of `MEMBERS` that lie on the boundary of most closed sets.
_BOUNDARY = ("zeros", "ones", "boundary")


@law(Scope(real=False, batches=((),), effort="long"))
def every_start_trains(case: Case) -> None:
    """Where an outsider starts, all directions of the set can be trained.

    For a set of dimension d, the d-th singular value of the Jacobian is at least a hundredth of
    the one at a typical member. In an open set of regular matrices, a matrix as well-conditioned
    as the samples starts at a matrix of similar condition.
    """
    constraint = case.build()
    if constraint.dimension(case.event) == 0:
        return
    samples = [case.sample(constraint, f"typical {k}") for k in range(5)]
    typical = float(torch.stack([_derivative(case, constraint, s) for s in samples]).median())
    worst = max(map(_condition, samples)) if case.event_dim == 2 else torch.inf
    is_regular = not case.cls.closed and WORSE * worst < 1 / torch.finfo(case.dtype).eps
    for name, value in _outsiders(case, samples[0]):
        start = constraint.start(value)
        expect(
            torch.isfinite(start).all(),
            case,
            f"start of {name}: expected finite numbers, found NaN or infinity.",
        )
        expect_member(start, case, constraint, f"start of {name}")
        if torch.equal(start, value):
            continue
        share = float(_derivative(case, constraint, start)) / typical
        expect(
            share >= ENOUGH,
            case,
            f"start of {name}: expected a derivative of at least {ENOUGH:g} of the one at a "
            f"typical member, found {share:.2g} of it.",
        )
        if is_regular and "member" in name:
            expect(
                _condition(start) <= WORSE * worst,
                case,
                f"start of {name}: expected a condition of at most {WORSE * worst:.3g}, like that "
                f"of a sample, found {_condition(start):.3g}.",
            )


@law()
def members_stay(case: Case) -> None:
    """``start`` returns a member bit for bit, whatever else the batch contains."""
    constraint = case.build()
    for name, value in members(case, constraint):
        if not bool(constraint.contains(value).all()):
            continue
        if not case.cls.closed and not torch.equal(constraint.project(value), value):
            # It is next to the boundary of an open set.
            continue
        found = constraint.start(value)
        expect(torch.equal(found, value), case, f"start of the member {name!r}: it has moved.")
        if case.batch and name == "random":
            mixed = value.clone()
            mixed[0] = _first_outsider(constraint, mixed[0])
            expect(
                torch.equal(constraint.start(mixed)[1:], value[1:]),
                case,
                "start of a batch of members and an outsider: a member has moved.",
            )


@law(Scope(dtypes=(torch.float64,), real=False, batches=((),)))
def flat_members_are_told(case: Case) -> None:
    """``flat`` reports members where the derivative vanishes, and none where it is large."""
    constraint = case.build()
    if constraint.dimension(case.event) == 0:
        return
    samples = [case.sample(constraint, f"typical {k}") for k in range(5)]
    typical = float(torch.stack([_derivative(case, constraint, s) for s in samples]).median())
    for name in _BOUNDARY:
        value = member(case, constraint, name)
        share = float(_derivative(case, constraint, value)) / typical
        told = bool(constraint.flat(value).any())
        expect(
            told or share > FLAT,
            case,
            f"member {name!r}: the derivative is {share:.2g} of the one at a typical member, and "
            "flat() says nothing.",
        )
        expect(
            not told or share < ENOUGH,
            case,
            f"member {name!r}: flat() tells of it, but its derivative is {share:.2g} of the one at "
            "a typical member.",
        )
    for value in samples:
        expect(not bool(constraint.flat(value).any()), case, "flat() tells of a random member.")


def _derivative(case: Case, constraint: Constraint, value: Tensor) -> Tensor:
    """The least singular value of the Jacobian along the set at an element, 0 if rank is lost."""
    params = tuple(p.clone() for p in unpack(constraint.right_inverse(value)))
    found = singular_values_at(constraint, params)
    count = constraint.dimension(case.event)
    return found[count - 1] if len(found) >= count else found.new_zeros(())


def _outsiders(case: Case, inside: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Tensors as people have them: weights of layers and constants, of both signs and any size."""
    fan_in = max(1, case.event[-1]) if case.event else 1
    noise = case.gaussian(salt="layer")
    yield "a default layer", noise / (3 * fan_in) ** 0.5
    yield "a small layer", 1e-3 * noise
    yield "an embedding", case.gaussian(salt="embedding")
    yield "zeros", torch.zeros_like(noise)
    yield "0.5 everywhere", torch.full_like(noise, 0.5)
    yield "-1 everywhere", torch.full_like(noise, -1.0)
    yield "-1e4 everywhere", torch.full_like(noise, -1e4)
    yield "1e4 * randn", 1e4 * case.gaussian(salt="huge")
    yield "-member", -inside
    if case.event_dim == 2:
        signs = torch.ones(case.event[0], 1, dtype=case.dtype)
        signs[0] = -1
        yield "a member with a row negated", signs * inside


def _first_outsider(constraint: Constraint, value: Tensor) -> Tensor:
    """A tensor of the shape of ``value`` that is not a member, or ``value`` if none is found."""
    for candidate in (-value, value - 100, value + 100, 100 * value):
        if not bool(constraint.contains(candidate).all()):
            return candidate
    return value


def _condition(value: Tensor) -> float:
    found = linalg.svdvals(value)
    return float(found[0] / found[-1]) if float(found[-1]) > 0 else torch.inf
