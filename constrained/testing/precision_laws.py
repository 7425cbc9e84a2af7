"""Laws about dtypes: low precision errs by its rounding, and autocast changes nothing."""

from __future__ import annotations

import torch

from constrained.testing.bounds import distance, expect_close, slack
from constrained.testing.case import Case, call, expect, unpack
from constrained.testing.points import near, params
from constrained.testing.runner import Scope, law

LOWER = (torch.float32, torch.bfloat16, torch.float16)


@law(Scope(dtypes=LOWER))
def agrees_with_double(case: Case) -> None:
    """``forward`` in a lower precision errs by no more than the rounding of the dtype.

    The reference is ``forward`` in double precision of the same parameters.
    """
    constraint = case.build()
    start = unpack(constraint.right_inverse(case.sample(constraint)))
    for name, free in (
        ("right_inverse(x)", start),
        ("right_inverse(x) + 0.1 * randn", near(case, constraint, start, 0.1)),
    ):
        found = constraint(*free)
        wide = torch.complex128 if case.dtype.is_complex else torch.float64
        exact = constraint(*(param.to(wide) for param in free))
        error = distance(found, exact, case.event_dim)
        allowed = slack(found, case)
        expect(
            (error <= allowed).all(),
            case,
            f"forward({name}): expected an error of at most {float(allowed.max()):.3g}, the "
            f"rounding of {case.dtype}, found {float(error.max()):.3g}.",
        )


@law(Scope(dtypes=(torch.float32, torch.float64), batches=((),)))
def autocast_changes_nothing(case: Case) -> None:
    """Under `torch.autocast` every method gives the same bits, in the same dtype."""
    constraint = case.build()
    inside, free = case.sample(constraint), params(case, constraint)
    outside = inside + 0.1 * case.gaussian()
    for method, arguments in (
        ("forward", free),
        ("right_inverse", (inside,)),
        ("project", (outside,)),
        ("violation", (outside,)),
    ):
        expected = call(constraint, method, *arguments)
        with torch.autocast("cpu", torch.bfloat16):
            found = call(constraint, method, *arguments)
        for a, b in zip(found, expected, strict=True):
            expect(
                a.dtype == b.dtype and torch.equal(a, b),
                case,
                f"{method}: expected the same {b.dtype} values under autocast, found {a.dtype} "
                f"values up to {float((a.to(b.dtype) - b).abs().max()):.3g} apart.",
            )


@law(Scope(dtypes=(torch.float64,), batches=((),)))
def moves_between_dtypes(case: Case) -> None:
    """One instance takes all dtypes; a member is still one after rounding to another precision."""
    constraint = case.build()
    lower = (torch.complex64,) if case.dtype.is_complex else LOWER
    for dtype in (case.dtype, *lower):
        value = case.sample(constraint).to(dtype)
        other = Case(case.cls, case.kwargs, case.event, case.batch, dtype)
        nearby = constraint.project(value)
        expect(nearby.dtype == dtype, other, f"project: found {nearby.dtype}.")
        expect_close(nearby, value, other, f"project of a member rounded to {dtype}")
        expect(
            constraint.contains(nearby).all(),
            other,
            f"a member rounded to {dtype} and projected: expected a member, found a violation of "
            f"{float(constraint.violation(nearby).max()):.3g}.",
        )
