"""What is read of a constrained tensor during training, without leaving a trace in it.

Nothing goes through the stored value that the model reads: whether a tensor was read since the
last step decides how a linear layer is applied, and what is kept of an evaluation. The value is
evaluated by itself here, from the same parameters, without gradients and random numbers.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from constrained.atomic import sharded
from constrained.atomic.contents import is_finite
from constrained.attached.attached_constraint import AttachedConstraint
from constrained.constraint.base import Constraint
from constrained.constraint.errors import OutOfRangeError
from constrained.parametrized.tensor_locations import Holder
from constrained.seeing.measured import violation_of
from constrained.seeing.spectrum import spectrum_of
from constrained.torch_internals.linalg import LinAlgError, vector_norm
from constrained.torch_internals.tensors import has_values


@dataclass(frozen=True)
class Reading:
    """What a monitor tells of one tensor at one step; None for what has no meaning for it.

    Attributes:
        violation: how far it is from its set; ``inf`` if it holds NaN or infinity.
        tolerance: how much of that is rounding.
        drift: its distance from the start, relative to the norm there.
        sigma_max: the largest singular value of its elements, if they are matrices.
        sigma_min: the smallest one.
        condition: the largest ratio of the largest singular value of an element and its smallest
            one that is not zero up to rounding.
        gradient_norm: the length of the gradient along the set: see `gradient_norm`.
    """

    violation: float | None = None
    tolerance: float | None = None
    drift: float | None = None
    sigma_max: float | None = None
    sigma_min: float | None = None
    condition: float | None = None
    gradient_norm: float | None = None


#: The names of what is told.
QUANTITIES = tuple(field.name for field in fields(Reading))


@torch.no_grad()
def value_of(found: Holder) -> Tensor | None:
    """The value of a constrained tensor, evaluated by itself; None if numbers are out of range."""
    try:
        return found.forward()
    except (OutOfRangeError, LinAlgError):
        return None


@torch.no_grad()
def reading_of(
    path: str,
    found: Holder,
    constraint: Constraint,
    start: Tensor | None,
    spectrum: bool | None,
) -> Reading:
    """Read one tensor.

    Args:
        path: where it is, for warnings.
        found: its list, whose value is a function of its originals.
        constraint: its constraint.
        start: its value at the start, of the same shape, if the drift is wanted.
        spectrum: whether the singular values are wanted; see `spectrum_of` for None.
    """
    value = value_of(found)
    if value is None:
        return Reading(violation=math.inf, tolerance=0.0, gradient_norm=gradient_norm(path, found))
    violation, allowed = violation_of(constraint, value)
    moved = None if start is None else drift(value, start)
    try:
        seen = None if spectrum is False else spectrum_of(constraint, value, always=bool(spectrum))
    except LinAlgError:
        seen = None
    return Reading(
        violation=violation,
        tolerance=allowed,
        drift=moved,
        sigma_max=seen and seen.largest,
        sigma_min=seen and seen.smallest,
        condition=seen and seen.condition,
        gradient_norm=gradient_norm(path, found),
    )


def drift(value: Tensor, start: Tensor) -> float:
    """The distance of a value from an earlier one, relative to the norm of that."""
    if not has_values(value):
        return math.nan
    wide = torch.complex128 if value.is_complex() else torch.float64
    earlier = start.detach().to(value.device, wide)
    moved = float(vector_norm(value.detach().to(wide) - earlier))
    size = float(vector_norm(earlier))
    return moved / size if size else moved


def _tangent_norm(found: AttachedConstraint) -> float | None:
    """The length of the admissible part of the gradient of a plain parameter."""
    value = found()
    if value.grad is None:
        return None
    point, along = sharded.whole(value).detach(), sharded.whole(value.grad).to_dense().detach()
    if not has_values(point) or not (is_finite(point) and is_finite(along)):
        return math.nan
    return float(vector_norm(found.constraint().admissible(point, along)))


def gradient_norm(path: str, found: Holder) -> float | None:
    r"""The length of the gradient along the set, in the Frobenius norm of the value.

    It is :math:`\lVert J g \rVert_F`, where g is what ``grad`` of the free parameters holds, and J
    the derivative of the map at the parameters: the speed of the value when the parameters go down
    the gradient. It vanishes where the loss is stationary along the set, and where the map is flat.
    Where the parameter is the element itself, as of an orthogonal matrix or a vector of unit
    length, J is the projection onto the tangent space, and this is the norm of the Riemannian
    gradient.

    Args:
        path: where the tensor is, for a warning.
        found: its list.

    Returns:
        None if no parameter has a gradient, or the map has no forward derivative; NaN if a
        parameter or a gradient is NaN or infinite.
    """
    if isinstance(found, AttachedConstraint):
        return _tangent_norm(found)
    originals = found.originals()
    gradients = [t.grad if t.is_leaf else None for t in originals]
    if all(g is None for g in gradients):
        return None
    points = [sharded.whole(t).detach() for t in originals]
    along = [
        torch.zeros_like(p) if g is None else sharded.whole(g).to_dense().detach().to(p.dtype)
        for p, g in zip(points, gradients, strict=True)
    ]
    if not all(map(has_values, (*points, *along))):
        return math.nan
    if not all(bool(torch.isfinite(t).all()) for t in (*points, *along)):
        return math.nan
    try:
        moved: Tensor = torch.func.jvp(found.evaluator(), tuple(points), tuple(along))[1]
    except (OutOfRangeError, LinAlgError):
        return math.nan
    except (RuntimeError, NotImplementedError) as error:
        warnings.warn(
            f"The gradient of '{path}' is not monitored, because {found.described()} has no "
            f"forward derivative: {str(error).splitlines()[0]}",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return float(vector_norm(moved.detach()))
