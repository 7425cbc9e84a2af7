"""The constrained tensors of a model, each with its value and how far that is from its set."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from constrained.atomic import sharded
from constrained.attached.attached_constraint import (
    AttachedConstraint,
    attached_constraints,
)
from constrained.constraint.base import Constraint
from constrained.constraint.errors import InfeasibleError, OutOfRangeError
from constrained.evaluation.evaluated_tensor import chain_repr
from constrained.parametrized.deferred import deferred_tensors
from constrained.parametrized.evaluation_mode import without_side_effects
from constrained.parametrized.parametrization_list import ParametrizationList, read
from constrained.parametrized.tensor_locations import in_order, parametrized_tensors
from constrained.torch_internals.linalg import LinAlgError
from constrained.torch_internals.tensors import has_values


@dataclass(frozen=True)
class Measured:
    """One constrained or parametrized tensor.

    Attributes:
        path: where it is in the model.
        constraint: its constraint, or None if a foreign module parametrizes it.
        described: what it is parametrized by, in words.
        value: None if it has none, because its module is lazy or its numbers are out of range.
        shape: the shape of its value.
        moved: how far it went when it was constrained, relative to its norm; None if unknown.
        violation: the largest one in its batch; see `violation_of`. None without a constraint.
        tolerance: the largest violation that is rounding.
        free: whether it is a plain parameter, and is computed from no others.
    """

    path: str
    constraint: Constraint | None
    described: str
    value: Tensor | None
    shape: tuple[int, ...]
    moved: float | None
    violation: float | None
    tolerance: float
    free: bool = False

    @property
    def holds(self) -> bool | None:
        """Whether the violation is no more than rounding; None if nobody can tell."""
        return holds(self.violation, self.tolerance)


def holds(violation: float | None, tolerance: float) -> bool | None:
    """Whether a violation is no more than rounding; None if nobody can tell."""
    if violation is None or math.isnan(violation):
        return None
    return math.isfinite(violation) and violation <= tolerance


def excess(violation: float | None, tolerance: float) -> float:
    """A violation in units of its tolerance, by which violations of several tensors compare."""
    if violation is None or math.isnan(violation):
        return -1.0
    return math.inf if violation == math.inf else violation / (tolerance or math.ulp(0.0))


def violation_of(constraint: Constraint, value: Tensor) -> tuple[float, float]:
    """The largest violation in a batch, and how much of it is rounding.

    The violation is ``inf`` if the value holds NaN or infinity, or finite numbers too large to be
    measured, and NaN if it holds no numbers at all, as on the meta device.
    """
    if not has_values(value):
        return math.nan, 0.0
    if not value.numel():
        return 0.0, 0.0
    try:
        measured, granted = map(torch.flatten, constraint.measured(value))
    except (OutOfRangeError, LinAlgError):
        return math.inf, 0.0
    # A violation that overflows is outside, even if its tolerance overflows as well.
    beyond = torch.where(torch.isfinite(measured), measured - granted, torch.inf)
    worst = int((beyond if bool((beyond > 0).any()) else measured).argmax())
    return float(measured[worst]), float(granted[worst])


@torch.no_grad()
def measured_tensors(model: nn.Module) -> Iterator[Measured]:
    """Each constrained or parametrized tensor, in the order of the model; lazy ones come last."""
    holders: dict[str, nn.Module | AttachedConstraint] = dict(parametrized_tensors(model))
    holders.update(attached_constraints(model))
    for path in in_order(model, holders):
        found = holders[path]
        if isinstance(found, AttachedConstraint):
            yield _attached(path, found)
        else:
            yield _parametrized(path, found)
    for path, item in deferred_tensors(model):
        described = f"{item!r}, once it has a shape"
        yield Measured(path, None, described, None, (), None, None, 0.0)


def _attached(path: str, found: AttachedConstraint) -> Measured:
    constraint, value = found.constraint(), sharded.whole(found()).detach()
    measured = violation_of(constraint, value)
    shape, described = tuple(value.shape), found.described()
    return Measured(path, constraint, described, value, shape, found.moved, *measured, free=True)


def _parametrized(path: str, found: nn.Module) -> Measured:
    is_own = isinstance(found, ParametrizationList)
    constraint = found.constraint() if is_own else None
    moved = found.moved if is_own else None
    described = repr(constraint) if constraint else chain_repr(found)
    if constraint is None:
        # A foreign module may write into itself when it is evaluated.
        with without_side_effects(found):
            value = read(found, path)
        return Measured(path, None, described, value, tuple(value.shape), moved, None, 0.0)
    try:
        value = read(found, path)
    except (OutOfRangeError, LinAlgError):
        # The numbers are too large to compute with. All other tensors are still measured.
        shape = tuple(found.shape) if is_own else ()
        return Measured(path, constraint, described, None, shape, moved, math.inf, 0.0)
    measured = violation_of(constraint, value)
    return Measured(path, constraint, described, value, tuple(value.shape), moved, *measured)


def violations(model: nn.Module) -> dict[str, float]:
    """How far each constrained tensor lies from its set: path -> largest violation in its batch.

    Args:
        model: the model.

    Returns:
        For each path a number: ``inf`` if the tensor holds NaN or infinity, and NaN if it holds no
        numbers at all, as on the meta device.

    Example:
        >>> import torch, constrained
        >>> model = constrained.constrain(torch.nn.Linear(3, 3), "weight", "positive")
        >>> constrained.violations(model)
        {'weight': 0.0}
    """
    return {m.path: m.violation for m in measured_tensors(model) if m.violation is not None}


def assert_feasible(model: nn.Module) -> None:
    """Raise unless every constrained tensor lies in its set, up to rounding.

    Such a model is called feasible. `Constraint.contains` asks the same of a value, and `Row.holds`
    of a single tensor.

    Args:
        model: the model.

    Raises:
        InfeasibleError: names the tensor that is farthest from its set, relative to the tolerance.

    Example:
        >>> import torch, constrained
        >>> model = constrained.constrain(torch.nn.Linear(3, 3), "weight", "orthogonal")
        >>> constrained.assert_feasible(model)
    """
    broken = [m for m in measured_tensors(model) if m.holds is False]
    if broken:
        worst = max(broken, key=lambda m: excess(m.violation, m.tolerance))
        others = f" ({len(broken) - 1} more tensors violate theirs)" if len(broken) > 1 else ""
        if worst.violation == math.inf:
            raise InfeasibleError(
                f"'{worst.path}' under {worst.described} holds NaN or infinite values, or finite "
                f"ones too large to be measured{others}."
            )
        raise InfeasibleError(
            f"'{worst.path}' violates {worst.described} by {worst.violation:.3g}, at most "
            f"{worst.tolerance:.3g} is rounding{others}."
        )
