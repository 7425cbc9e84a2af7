"""Laws about the set: the map lands in it and can be inverted; outsiders are rejected."""

from __future__ import annotations

import torch
from torch import Tensor

from constrained.constraint import registry
from constrained.constraint.base import Constraint
from constrained.constraint.tolerance import working_dtype
from constrained.testing.bounds import expect_close, expect_member, half_precision, size
from constrained.testing.case import Case, expect, unpack
from constrained.testing.points import (
    SCALES,
    graded,
    is_everything,
    members,
    near,
    outsiders,
    params,
)
from constrained.testing.runner import Scope, law

HALVES = (torch.bfloat16, torch.float16)
ALL_DTYPES = (torch.float32, torch.float64, *HALVES)


@law(Scope(dtypes=ALL_DTYPES))
def lands_in_the_set(case: Case) -> None:
    """``forward`` of parameters of every scale is a finite member of the right shape and dtype."""
    constraint = case.build()
    for spread in SCALES:
        free = params(case, constraint, spread)
        value = constraint(*free)
        what = f"forward of {spread:g} * randn"
        expect(
            value.shape == case.shape and value.dtype == case.dtype,
            case,
            f"{what}: expected {case.dtype} of shape {case.shape}, "
            f"found {value.dtype} of shape {tuple(value.shape)}.",
        )
        if case.dtype in HALVES and not _representable(constraint, free, case):
            continue
        expect(torch.isfinite(value).all(), case, f"{what}: expected finite values, found others.")
        expect_member(value, case, constraint, what)


@law(Scope(dtypes=ALL_DTYPES))
def right_inverse_inverts(case: Case) -> None:
    """``forward(right_inverse(x)) == x`` for random and degenerate members and mapped values."""
    constraint = case.build()
    shapes = None
    for name, value in members(case, constraint):
        free = unpack(constraint.right_inverse(value))
        for i, param in enumerate(free):
            what = f"right_inverse of {name}, parameter {i}"
            expect(torch.isfinite(param).all(), case, f"{what}: expected finite values.")
            expect(
                param.dtype == value.dtype,
                case,
                f"{what}: expected {value.dtype}, found {param.dtype}.",
            )
            expect(
                param.shape[: len(case.batch)] == case.batch,
                case,
                f"{what}: expected a shape that starts with {case.batch}, "
                f"found {tuple(param.shape)}.",
            )
        found = [tuple(param.shape) for param in free]
        shapes = shapes or found
        expect(
            found == shapes,
            case,
            f"right_inverse of {name}: expected parameters of the same shapes for all values, "
            f"found {found} and {shapes}.",
        )
        expect_close(constraint(*free), value, case, f"forward(right_inverse(x)), x = {name}")


@law(Scope(dtypes=ALL_DTYPES))
def members_are_accepted(case: Case) -> None:
    """Random and degenerate members have no violation beyond rounding."""
    constraint = case.build()
    for name, value in members(case, constraint):
        expect(
            value.shape == case.shape and value.dtype == case.dtype,
            case,
            f"{name}: expected {case.dtype} of shape {case.shape}, "
            f"found {value.dtype} of shape {tuple(value.shape)}.",
        )
        expect_member(value, case, constraint, name)


@law()
def graded_members_return(case: Case) -> None:
    """``forward(right_inverse(x)) == x`` for badly scaled members, with a finite gradient.

    They are projections of tensors whose singular values, or entries, spread evenly over 6 decades
    in single and 12 in double precision, at scales from 1e-6 to 1e6.
    """
    constraint = case.build()
    for factor in (1e-6, 1.0, 1e6):
        value = constraint.project(factor * graded(case))
        what = f"the projection of {factor:g} * a graded tensor"
        expect_member(value, case, constraint, what)
        free = [p.clone() for p in unpack(constraint.right_inverse(value))]
        found = constraint(
            *(p.requires_grad_(i not in constraint.frozen) for i, p in enumerate(free))
        )
        expect_close(found.detach(), value, case, f"forward(right_inverse(x)), x = {what}")
        leaves = [p for p in free if p.requires_grad]
        for gradient in torch.autograd.grad(found.abs().sum(), leaves, allow_unused=True):
            finite = gradient is None or bool(torch.isfinite(gradient).all())  # pyright: ignore[reportUnnecessaryComparison] - torch gives None for an unused leaf
            expect(finite, case, f"gradient at {what}: expected finite numbers.")


@law(Scope(dtypes=(torch.float32,), batches=((0,), (2, 0))))
def empty_batches_pass(case: Case) -> None:
    """Every method takes a batch without elements and gives the right shape."""
    constraint = case.build()
    empty = torch.empty(case.shape, dtype=case.dtype)
    free = unpack(constraint.right_inverse(empty))
    found = {
        "forward": constraint(*free).shape,
        "project": constraint.project(empty).shape,
        "violation": (*constraint.violation(empty).shape, *case.event),
        "contains": (*constraint.contains(empty).shape, *case.event),
        "sample": constraint.sample(case.shape).shape,
    }
    for method, shape in found.items():
        expect(
            tuple(shape) == case.shape,
            case,
            f"{method} of an empty batch: expected the shape {case.shape}, found {tuple(shape)}.",
        )


@law()
def outsiders_are_rejected(case: Case) -> None:
    """``right_inverse`` of an outsider, alone or among members, raises and states the violation."""
    constraint = case.build()
    inside = case.sample(constraint)
    found = list(outsiders(case, constraint))
    expect(
        found or is_everything(case, constraint),
        case,
        "expected some of the candidates to violate the constraint, found none.",
    )
    for name, outsider in found:
        value = inside.clone()
        if case.batch:
            value[0] = outsider[0]
        else:
            value = outsider
        violation = float(constraint.violation(value).max())
        accepted = constraint.contains(value)
        expect(
            bool(accepted.any()) == bool(case.batch) and not accepted.all(),
            case,
            f"contains({name}): expected False for the outsider alone, "
            f"found {accepted.tolist()} with the violation {violation:.3g}.",
        )
        message = _error(constraint, "right_inverse", value, ValueError)
        expect(
            message is not None,
            case,
            f"right_inverse({name}): expected a ValueError, for a violation of {violation:.3g}.",
        )
        expect(
            message and f"{violation:.3g}" in message and repr(constraint) in message,
            case,
            f"right_inverse({name}): expected a message that names {constraint!r} and the "
            f"violation {violation:.3g}, found {message!r}.",
        )
        expect(len(message or "") < 600, case, "expected a message of one sentence.")


@law(Scope(dtypes=(torch.float32,), batches=((2,),)))
def malformed_is_rejected(case: Case) -> None:
    """NaN, infinity, too few dimensions and wrong dtypes are refused, each with its own error."""
    constraint = case.build()
    inside = case.sample(constraint)
    for bad in (torch.nan, torch.inf, -torch.inf):
        value = inside.clone()
        value[(0,) * value.ndim] = bad
        violation = constraint.violation(value)
        expect(
            violation[0] == torch.inf and torch.isfinite(violation[1]),
            case,
            f"violation with a {bad} in the first of two elements: expected infinity for that one "
            f"alone, found {violation.tolist()}.",
        )
        accepted = [bool(answer) for answer in constraint.contains(value)]
        expect(accepted == [False, True], case, f"contains with a {bad}: found {accepted}.")
        for method in ("right_inverse", "project"):
            message = _error(constraint, method, value, ValueError)
            expect(
                message and "finite" in message,
                case,
                f"{method} with a {bad}: expected a ValueError about it, found {message!r}.",
            )
    if case.event:
        flat = inside[0].sum(0)
        _expect_error(case, constraint, "right_inverse", flat, ValueError, "dimension")
        _expect_error(case, constraint, "project", flat, ValueError, "dimension")
        _expect_error(case, constraint, "violation", flat, ValueError, "dimension")
    real = inside.real if inside.is_complex() else inside
    for value in (real.to(torch.int64), real > 0):
        _expect_error(case, constraint, "right_inverse", value, TypeError, "dtype")
        _expect_error(case, constraint, "project", value, TypeError, "dtype")
    if not case.cls.complex:
        value = inside.to(torch.complex64)
        _expect_error(case, constraint, "right_inverse", value, TypeError, "complex")


@law()
def canonical_keeps_the_element(case: Case) -> None:
    """``forward(*canonical(*p)) == forward(*p)``, and ``canonical`` does not write to ``p``."""
    constraint = case.build()
    start = unpack(constraint.right_inverse(case.sample(constraint)))
    for name, free in (
        ("right_inverse(x)", start),
        ("right_inverse(x) + 0.1 * randn", near(case, constraint, start, 0.1)),
        ("randn", params(case, constraint)),
    ):
        before = [param.clone() for param in free]
        better = constraint.canonical(*free)
        expect(
            all(torch.equal(a, b) for a, b in zip(before, free, strict=True)),
            case,
            f"canonical of {name}: expected the parameters to be left as they are.",
        )
        layout = [(p.shape, p.dtype) for p in free]
        expect(
            [(p.shape, p.dtype) for p in better] == layout,
            case,
            f"canonical of {name}: expected the shapes and dtypes {layout}, "
            f"found {[(p.shape, p.dtype) for p in better]}.",
        )
        expect_close(constraint(*better), constraint(*free), case, f"forward(canonical({name}))")
        for group in constraint.restored_together(len(free)):
            some = [better[i] if i in group else p for i, p in enumerate(free)]
            what = f"forward of {name} with canonical parameters at {list(group)}"
            expect_close(constraint(*some), constraint(*free), case, what)
        place = constraint.value_index
        if place is not None and working_dtype(case.dtype) is case.dtype:
            rest = {place, *constraint.frozen}
            others = [p for i, p in enumerate(better) if i not in rest]
            expect(
                torch.equal(constraint(*better), better[place]) and not any(map(torch.any, others)),
                case,
                f"canonical of {name}: the class says that its parameter {place} is the element "
                "itself and all others that are trained are zero, but they are not, bit for bit.",
            )


@law()
def factors_give_the_element(case: Case) -> None:
    """The product of ``factors``, where a class defines them, is what ``forward`` gives."""
    constraint = case.build()
    free = params(case, constraint)
    found = constraint.factors(*free)
    if found is not None:
        left, right = found
        expect_close(left @ right, constraint(*free), case, "the product of factors(randn)")


@law(Scope(batches=((2,),)))
def keeps_what_it_says(case: Case) -> None:
    """``forward`` maps members of each set named in ``preserves`` into that set."""
    constraint = case.build()
    for name in constraint.preserves:
        other = registry.get(name)()
        try:
            other.check_shape(case.shape)
        except ValueError:
            continue
        for factor in (1.0, 3.0):
            value = factor * other.sample(
                case.shape, generator=case.generator(name), dtype=case.dtype
            )
            if not bool(other.contains(value).all()):
                continue
            found = constraint(value)
            violation = float(other.violation(found).max())
            bound = half_precision(case.dtype) * float(size(found, case.event_dim).max())
            expect(
                violation <= bound,
                case,
                f"forward of {factor:g} * a member of {name}: expected a member of that again, "
                f"found a violation of {violation:.3g}.",
            )


def _representable(constraint: Constraint, free: tuple[Tensor, ...], case: Case) -> bool:
    # A set may contain numbers beyond the range of half precision, which no constraint can store.
    exact = constraint(*(param.double() for param in free))
    return bool(exact.abs().max() <= torch.finfo(case.dtype).max) if exact.numel() else True


def _error(constraint: Constraint, method: str, value: Tensor, kind: type[Exception]) -> str | None:
    try:
        getattr(constraint, method)(value)
    except kind as error:
        return str(error)
    return None


def _expect_error(
    case: Case,
    constraint: Constraint,
    method: str,
    value: Tensor,
    kind: type[Exception],
    about: str,
) -> None:
    found = f"{value.dtype} of shape {tuple(value.shape)}"
    message = _error(constraint, method, value, kind)
    expect(message, case, f"{method} of {found}: expected a {kind.__name__} ({about}).")
