"""Constrain the tensors of a model, and release them: all or nothing."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from constrained.atomic.interrupts import allow_interrupt, defer_interrupts
from constrained.atomic.undo import all_or_nothing, around, tensors_of
from constrained.constraint.errors import SpecError
from constrained.constraint.plain_data import short
from constrained.constraint.registry import did_you_mean
from constrained.constraint.spec import Request, parse
from constrained.model.changes import Change, carry_out, change_of, check_not_written, fitted
from constrained.model.errors import named
from constrained.model.lazy import LazyChange, check_can_wait, stop
from constrained.model.start import INITS, check_request
from constrained.model.targets import is_glob, select
from constrained.parametrized.deferred import deferred
from constrained.parametrized.locations import (
    Location,
    constrained_tensors,
    is_constrained,
    is_parametrized,
    locations,
)
from constrained.parametrized.parametrization_list import read
from constrained.registration.install import check_can_hold
from constrained.registration.outside_owners import check_other_owners, check_owners
from constrained.registration.param_groups import check_holds, check_optimizer
from constrained.registration.remove import remove_parametrizations
from constrained.registration.wrappers import check_not_wrapped


def constrain(
    module: nn.Module,
    target: str | Mapping[str, Any],
    constraint: Any = None,
    *,
    view: str | None = None,
    init: str = "keep",
    optimizer: Optimizer | None = None,
    **arguments: Any,
) -> nn.Module:
    """Keep tensors of a model inside constraint sets from now on.

    Nothing else changes: any optimizer, any training loop. A tensor is then computed from free
    parameters, under ``parametrizations.<name>`` of its module. Tied tensors stay tied; those
    that are tied to a module outside of this one are refused. After any error the model is as it
    was.

    Attributes of a parameter, such as ``_no_weight_decay``, are on each of the free parameters
    that it becomes. A gradient stays with a parameter that keeps its shape, and goes otherwise.

    A tensor of a lazy module, such as ``nn.LazyLinear``, is constrained as soon as it has its
    shape: on the first forward pass, or when a checkpoint is loaded. What does not fit that shape
    is an error there.

    Args:
        module: the model.
        target: a tensor's name, a dotted path, a glob over parameter paths (``*`` stays inside
            one segment, ``**`` crosses them), or a mapping from these to specs, as it comes out of
            YAML or JSON.
        constraint: a registered name, a spec string such as ``"low_rank(rank=8)"``, a mapping
            ``{"name": ..., <arguments>, "view": ..., "init": ...}``, a class path
            ``"package.module:Class"`` of an imported module, a `Constraint` (copied for every
            tensor), or any ``nn.Module`` with a ``forward``.
        view: an einops pattern that says how the tensor is seen as elements, for example
            ``"o i h w -> o (i h w)"``; lengths of its axes may follow as keyword arguments.
        init: ``"keep"``: an element in the set stays, another goes to one nearby from which it can
            be trained; ``"inside"``: so does an element next to the boundary that an optimizer
            would hardly move, of which ``"keep"`` warns; ``"sample"``: a random element;
            ``"strict"``: a tensor outside the set is an error. `report` shows how far each tensor
            moved.
        optimizer: an optimizer that holds the tensors already: it is given the parameters that
            take their place. Without it, an optimizer that goes on to hold a tensor which left
            the model warns at its next step.
        arguments: arguments of the constraint's constructor.

    Returns:
        ``module``.

    Raises:
        ValueError: for a name, an argument, a target, a view or a shape that does not fit, for
            NaN or infinite values, for a tensor that a module outside of this one owns as well,
            for an optimizer that holds nothing of a tensor that is trained, and under
            ``init="strict"`` for a tensor outside the set (`InfeasibleError`). One sentence that
            names the tensor by its path.
        RuntimeError: if DistributedDataParallel or FSDP has wrapped the model already.

    Example:
        >>> import torch
        >>> from constrained import constrain
        >>> layer = constrain(torch.nn.Linear(4, 4), "weight", "orthogonal")
        >>> torch.allclose(layer.weight @ layer.weight.T, torch.eye(4), atol=1e-5)
        True
    """
    check_optimizer(optimizer)
    requests = _requests(target, constraint, view, arguments)
    with defer_interrupts():
        changes = []
        for places_of_one, request in select(module, requests).values():
            allow_interrupt()
            start = init if request.init is None else request.init
            changes.append(prepare(places_of_one, request, start, optimizer))
        held = ((change.places, len(change.tensors())) for change in changes)
        check_owners(module, held)
        carry_out(changes, optimizer)
    return module


def release(
    module: nn.Module,
    target: str = "**",
    *,
    bake: bool = True,
    optimizer: Optimizer | None = None,
) -> nn.Module:
    """Make constrained tensors plain parameters again.

    What `constrain` did is undone, and nothing else: a tensor that a ``register_parametrization``
    parametrized, torch's or this package's, belongs to the model, as the weight norm of an audio
    encoder does. A glob passes it by; only its own path means it, and then it becomes plain too.
    Tied tensors stay tied; those that are tied to a module outside of this one are refused.

    Args:
        module: the model.
        target: as in `constrain`; every constrained tensor by default.
        bake: leave each tensor at its value; else at its free parameter, which is possible only
            where there is a single one.
        optimizer: an optimizer that holds the free parameters: it is given the tensors.

    Returns:
        ``module``.

    Raises:
        ValueError: if a target other than ``"**"`` means no constrained tensor, a tensor that
            has several free parameters should be left unbaked, a module outside of this one has
            it as well, or the optimizer holds nothing of a tensor that is trained. The model is
            then as it was.
        RuntimeError: if DistributedDataParallel or FSDP has wrapped the model, or it is offloaded.
    """
    check_optimizer(optimizer)
    if not isinstance(target, str):
        raise TypeError(f"The target must be a path or a glob, got {type(target).__name__}.")
    constrained = {path for path, place in locations(module).items() if _is_released(place)}
    chosen: list[list[Location]] = []
    if target != "**" or constrained:
        matched = [here for here, _ in select(module, {target: None}).values()]
        chosen = [here for here in matched if _is_released(here[0], named=not is_glob(target))]
        if target != "**" and not chosen:
            others = [here[0].path for here in matched if is_parametrized(*_owner(here[0]))]
            cure = f" Name {others[0]!r}, which others parametrized, by its path." if others else ""
            raise ValueError(
                f"{short(target)} means no constrained tensor of {type(module).__name__}."
                f"{cure or did_you_mean(target, constrained)}"
            )
    check_holds(optimizer, ((first.module, first.name, first.path) for first, *_ in chosen))
    check_other_owners(chosen)
    for place, *_ in chosen:
        check_not_wrapped(place.module, place.path)
        if not bake and not getattr(place.tensor, "is_tensor", True):
            raise ValueError(
                f"'{place.path}' has several free parameters, so bake=False leaves nothing that "
                "could take its place; use bake=True."
            )
    changed = around(place.module for here in chosen for place in here)
    with defer_interrupts(), all_or_nothing(changed, tensors_of(changed), optimizer):
        for here in chosen:
            allow_interrupt()
            place = here[0]
            if place.name in deferred(place.module):
                stop(here)
            else:
                remove_parametrizations(
                    module, place.path, leave_parametrized=bake, optimizer=optimizer
                )
    return module


def rebase(model: nn.Module) -> nn.Module:
    """Choose the free parameters of every constrained tensor anew, at its present value.

    What a right inverse gives is the middle of its map: the base point of a chart moves to the
    value, factors are balanced, rounding is cleaned up. The values stay.

    Raises:
        ValueError: if a tensor holds NaN or infinite values. The model is then as it was.
    """
    found = list(constrained_tensors(model))
    changed = [module for _, parametrizations, _ in found for module in parametrizations.modules()]
    with defer_interrupts(), all_or_nothing(changed, tensors_of(changed)), torch.no_grad():
        for path, parametrizations, _ in found:
            allow_interrupt()
            value = read(parametrizations, path)
            try:
                parametrizations.right_inverse(value)
            except (ValueError, TypeError) as error:
                raise named(path, error) from error.__cause__
    return model


def _requests(
    target: str | Mapping[str, Any], constraint: Any, view: str | None, arguments: dict[str, Any]
) -> dict[str, Request]:
    if isinstance(target, str):
        if constraint is None:
            raise SpecError(f"No constraint was given for {short(target)}.")
        return {target: _parse(target, constraint, view, arguments)}
    if not isinstance(target, Mapping):
        raise SpecError(
            "The target must be a path, a glob, or a mapping from these to constraints, got "
            f"{type(target).__name__}."
        )
    for key in target:
        if not isinstance(key, str):
            raise SpecError(f"A target is a path or a glob, a string, got {short(key)}.")
    if constraint is not None or view is not None or arguments:
        raise SpecError(
            "A mapping of targets holds the constraints with their views and arguments; none may "
            "be given beside it."
        )
    return {key: _parse(key, spec, None, {}) for key, spec in target.items()}


def _parse(target: str, spec: Any, view: str | None, arguments: dict[str, Any]) -> Request:
    try:
        return parse(spec, view, **arguments)
    except (ValueError, TypeError) as error:
        raise named(short(target, 200)[1:-1], error) from error.__cause__


def _is_released(place: Location, *, named: bool = False) -> bool:
    """Whether a tensor is to be plain again; one that others parametrized is if it is named."""
    waits = place.name in deferred(place.module)
    return waits or is_constrained(place) or (named and is_parametrized(*_owner(place)))


def _owner(place: Location) -> tuple[nn.Module, str]:
    return place.module, place.name


def prepare(
    here: list[Location], request: Request, init: str, optimizer: Optimizer | None = None
) -> Change:
    """Find the free parameters of a tensor; nothing of the model is written.

    Args:
        here: every place of the tensor.
        request: what is asked for.
        init: one of `INITS`.
        optimizer: who is to be told of a change that is put off.

    Raises:
        ValueError: if the tensor cannot be constrained like that. It names the tensor.
        TypeError: likewise.
    """
    place = here[0]
    if init not in INITS:
        raise ValueError(
            f"init must be {', '.join(map(repr, INITS[:-1]))} or {INITS[-1]!r}, got {short(init)}."
            f"{did_you_mean(init, INITS) if isinstance(init, str) else ''}"
        )
    original = place.tensor
    existing: Any = deferred(place.module).get(place.name)
    if isinstance(original, nn.Module):
        existing = " then ".join(repr(p) for p in original.children())
    if existing is not None or isinstance(original, nn.Module):
        raise ValueError(
            f"'{place.path}' is constrained already, by {existing}; release it by this path first."
        )
    try:
        check_request(request, init)
        for other in here:
            check_not_wrapped(other.module, other.path)
            check_can_hold(other.module, other.name)
            check_not_written(other)
            if is_lazy(original):
                check_can_wait(other.module)
        if is_lazy(original):
            mine = replace(request, constraint=fitted(here, request).build())
            told = None if optimizer is None else weakref.ref(optimizer)
            return LazyChange(here, place.path, mine, init, told)
    except (ValueError, TypeError) as error:
        raise named(place.path, error) from error.__cause__
    return change_of(here, original, request, init)
