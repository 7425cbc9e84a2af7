"""Tensors to try the laws on: members, parameters and outsiders of a constraint, of every scale."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from constrained.constraint.base import Constraint
from constrained.constraint.tolerance import tolerance
from constrained.testing.bounds import far, scale
from constrained.testing.case import MEMBERS, POINTS, Case, unpack
from constrained.torch_internals import linalg

#: Standard deviations of random parameters.
SCALES = (0.0, 1e-6, 1e-3, 1.0, 10.0, 1e3, 1e6)

#: A violation of more tolerances than this is certainly not rounding.
CERTAIN = 16.0

_MATRICES = {"eye", "repeated"}


def points(cls: type[Constraint], event_dim: int) -> tuple[str, ...]:
    """The points of `POINTS` at which derivatives of a constraint are checked.

    The identity and repeated singular values need matrices. On an open set the projections of
    zeros, of ones and of far tensors are left out. They may lie as close to the boundary as the
    dtype allows, and there the derivative of a map from all of space vanishes.
    """
    leave_out = _MATRICES if event_dim < 2 else set[str]()
    if not cls.closed:
        leave_out = leave_out | {"zeros", "ones", "boundary"}
    return tuple(point for point in POINTS if point not in leave_out)


def member(case: Case, constraint: Constraint, point: str) -> Tensor:
    """An element of the set: a random one, or the projection of a degenerate tensor."""
    if point == "random":
        return case.sample(constraint)
    return constraint.project(degenerate(case, point))


def members(case: Case, constraint: Constraint) -> Iterator[tuple[str, Tensor]]:
    """Elements of the set by name: random ones, degenerate ones, and values of the map."""
    for point in MEMBERS:
        if case.event_dim > 1 or point not in _MATRICES:
            yield point, member(case, constraint, point)
    for spread in (1.0, 10.0):
        yield f"forward of {spread:g} * randn", constraint(*params(case, constraint, spread))


def params(
    case: Case, constraint: Constraint, spread: float = 1.0, salt: str = "params"
) -> tuple[Tensor, ...]:
    """Random parameters, normal with the standard deviation ``spread``.

    Frozen parameters keep the values that the right inverse gives them.
    """
    start = unpack(constraint.right_inverse(case.sample(constraint)))
    return tuple(
        param if i in constraint.frozen else spread * case.gaussian(param.shape, f"{salt} {i}")
        for i, param in enumerate(start)
    )


def near(
    case: Case, constraint: Constraint, start: tuple[Tensor, ...], spread: float, salt: str = "near"
) -> tuple[Tensor, ...]:
    """Parameters around ``start``, normal with the standard deviation ``spread``."""
    return tuple(
        param
        if i in constraint.frozen
        else param + spread * case.gaussian(param.shape, f"{salt} {spread} {i}")
        for i, param in enumerate(start)
    )


def params_at(case: Case, constraint: Constraint, point: str) -> tuple[Tensor, ...]:
    """The parameters of a point of `POINTS`."""
    if point == "random_params":
        return params(case, constraint)
    if point == "zero_params":
        return params(case, constraint, 0.0)
    return tuple(
        p.clone() for p in unpack(constraint.right_inverse(member(case, constraint, point)))
    )


def candidates(case: Case, constraint: Constraint) -> Iterator[tuple[str, Tensor]]:
    """Tensors by name. Most of them lie outside of most sets."""
    inside = case.sample(constraint)
    noise = case.gaussian()
    # The root mean square of a typical element's entries, so that noise is as large as elements.
    entry = scale(case) / max(1, noise[(0,) * len(case.batch)].numel()) ** 0.5
    yield "member + 1e-2 * randn", inside + 1e-2 * entry * noise
    yield "member + randn", inside + entry * noise
    yield "10 * randn", 10 * entry * case.gaussian(salt="far")
    yield "-member", -inside
    yield "3 * member", 3 * inside
    yield "-10 everywhere", torch.full_like(inside, -10 * entry)
    yield "10 everywhere", torch.full_like(inside, 10 * entry)


def outsiders(case: Case, constraint: Constraint) -> Iterator[tuple[str, Tensor]]:
    """The candidates whose elements all violate the constraint by more than rounding."""
    for name, value in candidates(case, constraint):
        violation = constraint.violation(value)
        if bool((violation > CERTAIN * tolerance(value, case.event_dim)).all()):
            yield name, value


def is_everything(case: Case, constraint: Constraint) -> bool:
    """Whether the set is all of space, up to a set of measure zero, so that it has no outsiders.

    That is so if it has the dimension of space and `project` moves none of the candidates.
    """
    entries = torch.Size(case.event).numel() * (2 if case.dtype.is_complex else 1)
    return constraint.dimension(case.event) == entries and not any(
        bool(far(constraint.project(value), value, case).any())
        for _, value in candidates(case, constraint)
    )


def graded(case: Case) -> Tensor:
    """A tensor whose singular values (entries, for vectors) fall from 1 to 1e-6, or 1e-12."""
    decades = 12 if case.dtype in (torch.float64, torch.complex128) else 6
    wide = torch.complex128 if case.dtype.is_complex else torch.float64
    if case.event_dim < 2:
        sizes = torch.logspace(0, -decades, max(1, torch.Size(case.event).numel()))
        return sizes.reshape(case.event).expand(case.shape).to(case.dtype).clone()
    left, right = _orthonormal(case)
    sizes = torch.logspace(0, -decades, left.shape[-1], dtype=torch.float64).to(wide)
    return ((left * sizes) @ right.mH).to(case.dtype)


def degenerate(case: Case, point: str) -> Tensor:
    """The tensor of a point of `MEMBERS` other than ``"random"``, before it is projected."""
    value = torch.zeros(case.shape, dtype=case.dtype)
    if point == "zeros":
        return value
    if point == "ones":
        return value + 1
    if point == "eye":
        torch.diagonal(value, dim1=-2, dim2=-1).fill_(1)
        return value
    if point == "repeated":
        return _repeated_singular_values(case)
    if point == "boundary":
        return 10 * scale(case) * case.gaussian(salt="boundary")
    raise ValueError(f"Unknown point {point!r}; there are {', '.join(POINTS)}.")


def _repeated_singular_values(case: Case) -> Tensor:
    """U diag(2, 2, ..., 1, 1) V^T: symmetric and positive definite when it is square."""
    left, right = _orthonormal(case)
    values = torch.ones(left.shape[-1], dtype=left.dtype)
    values[: (len(values) + 1) // 2] = 2
    return ((left * values) @ right.mH).to(case.dtype)


def _orthonormal(case: Case) -> tuple[Tensor, Tensor]:
    """Two matrices with orthonormal columns, in double precision; equal for a square shape."""
    rows, columns = case.event[-2:]
    rank = min(rows, columns)
    wide = torch.complex128 if case.dtype.is_complex else torch.float64
    noise = case.gaussian((*case.batch, *case.event[:-2], rows, rank), "left").to(wide)
    left = linalg.qr(noise).Q
    if rows == columns:
        return left, left
    noise = case.gaussian((*case.batch, *case.event[:-2], columns, rank), "right").to(wide)
    return left, linalg.qr(noise).Q
