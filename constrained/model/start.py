"""Where a tensor starts when it is constrained, and how far that is from where it was."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from constrained.constraint.base import START, Constraint
from constrained.constraint.errors import SpecError
from constrained.constraint.spec import Request
from constrained.constraint.tolerance import working_dtype
from constrained.parametrized.parametrization_list import ParametrizationList
from constrained.torch_internals import linalg
from constrained.torch_internals.tensors import has_values

#: Where a tensor starts when it is constrained; see `constrain`.
Init = Literal["keep", "inside", "sample", "strict"]

INITS: tuple[Init, ...] = get_args(Init)


def check_request(request: Request) -> None:
    """Raise a `SpecError` for what a module that is not a `Constraint` cannot have."""
    if isinstance(request.constraint, Constraint):
        return
    if request.view is not None:
        raise SpecError("A view goes with a Constraint, not with any other module.")
    for setting, default in (("init", "keep"), ("mode", "parametrize")):
        if (value := getattr(request, setting)) != default:
            raise SpecError(
                f"{setting}={value!r} goes with a Constraint, not with any other module."
            )


def start_of(constraint: Constraint, value: Tensor, init: str) -> Tensor:
    """The member of a set at which a tensor starts.

    Args:
        constraint: of the set.
        value: the tensor as it is.
        init: one of `INITS`.

    Raises:
        ValueError: for NaN or infinity, for a shape that does not fit, for arguments beyond the
            range of the dtype, and under ``"strict"`` for an outsider.
        TypeError: for a dtype that the constraint does not take.
    """
    constraint.check_tensor(value)
    _check_numbers(constraint, value.dtype)
    if init == "sample":
        return constraint.sample(value.shape, dtype=value.dtype, device=value.device)
    if init == "strict" and has_values(value):
        constraint.check_member(value)
        return value
    value = constraint.start(value)
    return constraint.inwards(value, START) if init == "inside" and has_values(value) else value


def _check_numbers(constraint: Constraint, dtype: torch.dtype) -> None:
    """Raise if an argument of a constraint overflows or underflows in its working precision."""
    finfo = torch.finfo(working_dtype(dtype))
    for part in constraint.modules():
        if not isinstance(part, Constraint):
            continue
        for key, number in part.arguments().items():
            if isinstance(number, (int, float)) and math.isfinite(number):
                size = abs(number)
                if size > finfo.max or 0 < size < finfo.smallest_normal * finfo.eps:
                    raise ValueError(
                        f"{part!r}: {key}={number!r} is {'too large' if size > 1 else 'zero'} in "
                        f"{finfo.dtype}, in which the set is computed."
                    )


def count_flat(parametrizations: ParametrizationList) -> tuple[int, int]:
    """The number of elements of a new value that cannot be trained, and of all its elements."""
    constraint, value = parametrizations.constraint(), parametrizations.preview()
    if constraint is None or not has_values(value):
        return 0, 0
    flat = constraint.flat(value)
    return int(flat.sum()), flat.numel()


def relative_distance(value: Tensor, before: Tensor) -> float:
    """How far a tensor moves, relative to its norm; absolute if that is zero."""
    if not has_values(value):
        return 0.0
    precise = torch.complex128 if value.is_complex() else torch.float64
    moved = linalg.vector_norm(value.to(precise) - before.to(precise))
    norm = linalg.vector_norm(before.to(precise))
    return float(moved / norm) if norm > 0 else float(moved)
