"""When two results count as equal: the numerical bounds of all laws, derived from `tolerance`.

No class has bounds of its own. If a constraint fails a bound, either the constraint loses digits or
the library's tolerance is wrong.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from constrained.constraint.base import Constraint
from constrained.constraint.tolerance import tolerance, working_dtype
from constrained.testing.case import Case, expect
from constrained.torch_internals import linalg

#: How many tolerances two computations of one element may differ by. Each computation errs by a
#: few, and so does the rounding of the parameters between them.
STEPS = 8.0


def half_precision(dtype: torch.dtype) -> float:
    """The square root of the machine epsilon: agreement to half of the digits.

    It is the bound for derivatives, which are worse conditioned than values, and for differences
    that are too large to be rounding.
    """
    return torch.finfo(dtype).eps ** 0.5


def size(value: Tensor, event_dim: int) -> Tensor:
    """The Frobenius norm of each element, in the working precision, of shape ``batch``."""
    magnitude = value.detach().to(working_dtype(value.dtype)).abs()
    if event_dim == 0:
        return magnitude
    return linalg.vector_norm(magnitude.flatten(magnitude.ndim - event_dim), dim=-1)


def distance(a: Tensor, b: Tensor, event_dim: int) -> Tensor:
    """The Frobenius distance of each pair of elements, of shape ``batch``."""
    dtype = torch.promote_types(working_dtype(a.dtype), working_dtype(b.dtype))
    return size(a.to(dtype) - b.to(dtype), event_dim)


@functools.lru_cache(maxsize=16)
def typical(case: Case) -> Tensor:
    """A few samples of the set. Their magnitude is the scale on which the constraint computes."""
    shape = (8, *case.event)
    return case.build().sample(shape, generator=case.generator("typical"), dtype=case.dtype)


@functools.lru_cache(maxsize=16)
def scale(case: Case) -> float:
    """The norm of a typical element."""
    norm = float(size(typical(case), case.event_dim).amax())
    return norm if norm > 0 else 1.0


def slack(value: Tensor, case: Case) -> Tensor:
    """How far from ``value`` an equal element may lie: `STEPS` tolerances, of shape ``batch``.

    It is the tolerance of the value or of a typical element, whichever is larger, because even an
    element close to zero is computed from numbers of typical size.
    """
    event_dim = case.event_dim
    floor = tolerance(typical(case), event_dim).amax()
    return STEPS * torch.maximum(tolerance(value, event_dim), floor)


def far(found: Tensor, expected: Tensor, case: Case) -> Tensor:
    """Which elements differ by far more than rounding: in the first half of their digits."""
    event_dim = case.event_dim
    norm = size(expected, event_dim) + scale(case)
    return distance(found, expected, event_dim) > half_precision(working_dtype(case.dtype)) * norm


def expect_close(found: Tensor, expected: Tensor, case: Case, what: str) -> None:
    """Raise an `AssertionError` unless two tensors of elements agree up to `slack`."""
    if found.shape != expected.shape:
        raise AssertionError(
            f"{case}: {what}: expected the shape {tuple(expected.shape)}, "
            f"found {tuple(found.shape)}."
        )
    if not bool(torch.isfinite(found).all()):
        raise AssertionError(f"{case}: {what}: expected finite values, found NaN or infinity.")
    apart, allowed = distance(found, expected, case.event_dim), slack(expected, case)
    if not bool((apart <= allowed).all()):
        worst = int((apart - allowed).argmax())
        raise AssertionError(
            f"{case}: {what}: expected equal elements up to {float(allowed.flatten()[worst]):.3g}, "
            f"found them {float(apart.flatten()[worst]):.3g} apart."
        )


def expect_member(value: Tensor, case: Case, constraint: Constraint, what: str) -> None:
    """Raise an `AssertionError` unless each element lies in the set, up to rounding."""
    violation = constraint.violation(value)
    expect(
        violation.shape == case.batch,
        case,
        f"violation of {what}: expected shape {case.batch}, found {tuple(violation.shape)}.",
    )
    allowed = tolerance(value, case.event_dim)
    expect(
        (violation <= allowed).all(),
        case,
        f"{what}: expected a violation of at most {float(allowed.max()):.3g}, "
        f"found {float(violation.max()):.3g}.",
    )
