"""The constraint of a parameter group: written as plain data, and read again."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from constrained.attached.attached_constraint import (
    AttachedConstraint,
    projected_by_parameter,
    revision,
)
from constrained.constraint.base import Constraint
from constrained.constraint.named_views import is_named
from constrained.constraint.spec import parse
from constrained.constraint.view import View, with_view


def as_plain_data(spec: Any) -> dict[str, Any]:
    """The spec of a constraint as plain data, which a state dict of an optimizer can hold.

    Args:
        spec: as `constrained.constrain` takes it: a name, a string, a mapping, a `Constraint`.

    Raises:
        SpecError: if the spec is not valid.
        ValueError: if it has a view that depends on a module.
    """
    request = parse(spec)
    if not isinstance(request.constraint, Constraint):
        raise ValueError(f"An optimizer needs a Constraint, got {type(request.constraint)}.")
    plain = request.constraint.spec()
    if request.view is None:
        return plain
    if is_named(request.view):
        raise ValueError(
            f"The view {request.view!r} depends on the module that has the tensor; write it as an "
            "einops pattern."
        )
    return with_view(plain, request.view, request.sizes)


def constraint_of(plain: Mapping[str, Any] | None, parameter: Tensor) -> Constraint:
    """The constraint of a parameter: what plain data stand for, or else what is attached to it.

    Raises:
        ValueError: if there are no plain data, and nothing is attached.
    """
    if plain is None:
        found = attached_to(parameter)
        if found is None:
            raise ValueError(
                "it has no constraint; call constrain(model, ..., mode='project'), or give the "
                "optimizer one, as in constraint='orthogonal'."
            )
        return found.constraint()
    shape = tuple(parameter.shape)
    return _constraint_of(json.dumps(plain, sort_keys=True), "view" in plain and shape)


@functools.lru_cache(maxsize=1)
def _attached(number: int) -> dict[int, AttachedConstraint]:
    del number
    return projected_by_parameter()


@functools.lru_cache(maxsize=256)
def _constraint_of(text: str, shape: tuple[int, ...] | bool) -> Constraint:
    request = parse(json.loads(text))
    constraint = request.constraint
    assert isinstance(constraint, Constraint)
    if request.view is None or isinstance(shape, bool):
        return constraint
    return View(constraint, request.view, shape, request.sizes)


def set_of(plain: Mapping[str, Any] | None, parameter: Tensor) -> Constraint:
    """The constraint of a parameter as `constraint_of` finds it, or else that of all of space."""
    if plain is None and attached_to(parameter) is None:
        return _constraint_of('{"name": "real"}', False)
    return constraint_of(plain, parameter)


def attached_to(parameter: Tensor) -> AttachedConstraint | None:
    """What is known of a parameter that `constrained.constrain` keeps with ``mode="project"``."""
    found = _attached(revision()).get(id(parameter))
    return found if found is not None and found.parameter() is parameter else None
