"""From the arguments of `constrain` to rules, and from each selected tensor to its change."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass, replace
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from constrained.atomic.interrupts import allow_interrupt
from constrained.attached.attached_constraint import (
    MODES,
    ON_NONFINITE,
    AttachedConstraint,
)
from constrained.constraint.errors import SpecError
from constrained.constraint.plain_data import is_mapping, short
from constrained.constraint.registry import did_you_mean
from constrained.constraint.spec import Request
from constrained.model.changes import Change, change_of, check_not_written, fitted
from constrained.model.config import Rule, plain, read_rule, read_rules
from constrained.model.error_messages import with_path
from constrained.model.lazy import LazyChange, check_can_wait
from constrained.model.patterns import is_pattern
from constrained.model.start import INITS, check_request
from constrained.model.targets import Choice, Selection
from constrained.parametrized.deferred import deferred
from constrained.parametrized.tensor_locations import Location, locations
from constrained.registration.install import check_can_hold
from constrained.registration.wrappers import check_not_wrapped

#: What each setting of a rule may be.
_SETTINGS: Mapping[str, Sequence[str]] = {
    "init": INITS,
    "mode": MODES,
    "on_nonfinite": ON_NONFINITE,
}


def rules_of(
    module: nn.Module,
    target: Any,
    constraint: Any,
    view: str | None,
    arguments: Mapping[str, Any],
    settings: Mapping[str, str],
) -> tuple[dict[str, Rule], list[Exception]]:
    """The rules that the arguments of `constrain` stand for, and all that is wrong with them.

    Args:
        module: the model.
        target: a path, a pattern, or a config.
        constraint: a spec, if the target is a path or a pattern.
        view: a view, likewise.
        arguments: further arguments of the constraint, likewise.
        settings: ``init``, ``mode`` and ``on_nonfinite``, for rules that do not say these.
    """
    rules, errors = _rules_of(module, target, constraint, view, arguments)
    return {name: rule.with_settings(settings) for name, rule in rules.items()}, errors


def _rules_of(
    module: nn.Module, target: Any, constraint: Any, view: str | None, arguments: Mapping[str, Any]
) -> tuple[dict[str, Rule], list[Exception]]:
    if not isinstance(target, str):
        beside = constraint is not None or view is not None or bool(arguments)
        if beside and (is_mapping(target) or is_dataclass(target)):
            error = SpecError(
                "A mapping of targets holds the constraints with their views and arguments; none "
                "may be given beside it."
            )
            return {}, [error]
        return read_rules(target, locations(module))
    try:
        if constraint is None:
            raise SpecError(f"No constraint was given for {short(target)}.")
        return {target: read_rule(target, plain(constraint), view, arguments)}, []
    except (ValueError, TypeError) as error:
        return {}, [error]


def prepare_all(
    selection: Selection[Rule], optimizer: Optimizer | None = None
) -> Iterator[tuple[Choice[Rule], Change | Exception]]:
    """The change of each selected tensor, or what is wrong with it; nothing is written.

    Args:
        selection: the tensors and their rules.
        optimizer: as in `prepare`.
    """
    for choice in selection.choices:
        request = choice.value.request
        if request is None:
            continue
        allow_interrupt()
        found: Change | Exception
        try:
            found = prepare(choice.places, request, optimizer)
        except Exception as error:
            found = _with_hint(choice, error)
        yield choice, found


def _with_hint(choice: Choice[Rule], error: Exception) -> Exception:
    """The error, with a hint at ``where`` if a pattern matches a tensor that does not fit."""
    if not isinstance(error, (ValueError, TypeError)) or not is_pattern(choice.target):
        return error
    if not replace(choice.value, where="fits").why_not(choice.places[0]):
        return error
    return type(error)(
        f"{str(error).rstrip('.')}; where='fits' would leave out what cannot carry the constraint."
    )


def prepare(here: list[Location], request: Request, optimizer: Optimizer | None = None) -> Change:
    """The change that constrains a tensor; nothing of the model is written.

    Args:
        here: the tensor's locations; several if it is tied.
        request: the constraint with its view and its settings.
        optimizer: an optimizer to give the new parameters to, for a tensor of a lazy module.

    Raises:
        ValueError: if the tensor cannot be constrained like that. It names the tensor.
        TypeError: likewise.
    """
    place = here[0]
    for setting, known in _SETTINGS.items():
        _check_setting(place.path, setting, getattr(request, setting), known)
    if request.on_nonfinite == "skip" and request.mode != "project":
        raise SpecError(
            f"'{place.path}': on_nonfinite='skip' goes with mode='project', and this has "
            f"mode={request.mode!r}."
        )
    original = place.tensor
    existing: Any = deferred(place.module).get(place.name)
    if isinstance(original, nn.Module):
        existing = " then ".join(repr(p) for p in original.children())
    elif isinstance(place.holder, AttachedConstraint):
        existing = place.holder.described()
    if existing is not None or isinstance(original, nn.Module):
        raise ValueError(
            f"'{place.path}' is constrained already, by {existing}; release it by this path first."
        )
    try:
        check_request(request)
        for other in here:
            check_not_wrapped(other.module, other.path)
            if request.mode == "parametrize":
                check_can_hold(other.module, other.name)
                check_not_written(other)
            if is_lazy(original):
                check_can_wait(other.module)
        if is_lazy(original):
            mine = replace(request, constraint=fitted(here, request).build())
            later = None if optimizer is None else weakref.ref(optimizer)
            return LazyChange(here, place.path, mine, later)
    except (ValueError, TypeError) as error:
        raise with_path(place.path, error) from error.__cause__
    return change_of(here, original, request)


def _check_setting(path: str, name: str, value: Any, known: Sequence[str]) -> None:
    """Raise a `ValueError` unless a setting has one of the values that it may have."""
    if value not in known:
        guess = did_you_mean(value, known) if isinstance(value, str) else ""
        choices = f"{', '.join(map(repr, known[:-1]))} or {known[-1]!r}"
        raise ValueError(f"'{path}': {name} must be {choices}, got {short(value)}.{guess}")
