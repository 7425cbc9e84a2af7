"""`constrain`: keep tensors of a model inside constraint sets, all or nothing."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from constrained.atomic.interrupts import allow_interrupt, defer_interrupts
from constrained.constraint.errors import SpecError
from constrained.constraint.plain_data import short
from constrained.constraint.registry import did_you_mean
from constrained.constraint.spec import Request, parse
from constrained.model.changes import Change, carry_out, change_of, check_not_written, fitted
from constrained.model.error_messages import with_path
from constrained.model.lazy import LazyChange, check_can_wait
from constrained.model.start import INITS, Init, check_request
from constrained.model.targets import select
from constrained.parametrized.deferred import deferred
from constrained.parametrized.tensor_locations import Location
from constrained.registration.install import check_can_hold
from constrained.registration.outside_owners import check_owners
from constrained.registration.param_groups import check_optimizer
from constrained.registration.wrappers import check_not_wrapped

M = TypeVar("M", bound=nn.Module)


def constrain(
    module: M,
    target: str | Mapping[str, Any],
    constraint: Any = None,
    *,
    view: str | None = None,
    init: Init = "keep",
    optimizer: Optimizer | None = None,
    **arguments: Any,
) -> M:
    """Keep tensors of a model inside constraint sets from now on.

    Any optimizer and any training loop work as before. A tensor is then computed from free
    parameters, under ``parametrizations.<name>`` of its module. Tied tensors stay tied. It is an
    error if a tensor is tied to one of a module outside of ``module``. After any error the model is
    as it was.

    Attributes of a parameter, such as ``_no_weight_decay``, are copied to each of the free
    parameters that it becomes. Its gradient is kept if the parameter keeps its shape, and dropped
    otherwise.

    A tensor of a lazy module, such as ``nn.LazyLinear``, is constrained as soon as it has its
    shape: on the first forward pass, or when a checkpoint is loaded. If the constraint does not fit
    that shape, the error is raised there.

    Args:
        module: the model.
        target: a tensor's name, a dotted path, a glob over parameter paths (``*`` stays inside
            one segment, ``**`` crosses segments), or a mapping from these to specs, as it comes out
            of YAML or JSON.
        constraint: a registered name, a spec string such as ``"low_rank(rank=8)"``, a mapping
            ``{"name": ..., <arguments>, "view": ..., "init": ...}``, a class path
            ``"package.module:Class"`` of an imported module, a `Constraint` (copied for every
            tensor), or any ``nn.Module`` with a ``forward``.
        view: an einops pattern that rearranges the tensor into elements, for example
            ``"o i h w -> o (i h w)"``; lengths of its axes may follow as keyword arguments.
        init: where each tensor starts. `report` shows how far it moved.

            - ``"keep"``: a member of the set stays as it is; an outsider goes to a member nearby
              from which it can be trained.
            - ``"inside"``: the same, but a member next to the boundary that an optimizer would
              hardly move is moved further inside. ``"keep"`` warns of such members.
            - ``"sample"``: at a random member.
            - ``"strict"``: where it is; an outsider is an error.

            `load_state_dict` has a similar choice for values of a checkpoint, ``on_infeasible``:
            ``"error"`` is ``"strict"``, and ``"project"`` takes the nearest member instead of one
            that trains well, since a loaded model shall compute what it did.
        optimizer: an optimizer that holds the tensors already: it is given the parameters that
            replace them. Without it, an optimizer that still holds a tensor which is no longer in
            the model warns at its next step.
        arguments: arguments of the constraint's constructor.

    Returns:
        ``module``, of the type that it has.

    Raises:
        ValueError: for a name, an argument, a target, a view or a shape that does not fit, for
            NaN or infinite values, for a tensor that a module outside of this one owns as well,
            for an optimizer that holds nothing of a tensor that is trained, and under
            ``init="strict"`` for a tensor outside the set (`InfeasibleError`). The message is one
            sentence that names the tensor by its path.
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
        changes: list[Change] = []
        for tied, request in select(module, requests).values():
            allow_interrupt()
            start = init if request.init is None else request.init
            changes.append(prepare(tied, request, start, optimizer))
        held = ((change.places, len(change.tensors())) for change in changes)
        check_owners(module, held)
        carry_out(changes, optimizer)
    return module


def prepare(
    here: list[Location], request: Request, init: str, optimizer: Optimizer | None = None
) -> Change:
    """The change that constrains a tensor; nothing of the model is written.

    Args:
        here: the tensor's locations; several if it is tied.
        request: the constraint and its view.
        init: one of `INITS`.
        optimizer: an optimizer to give the new parameters to, for a tensor of a lazy module.

    Raises:
        ValueError: if the tensor cannot be constrained like that. It names the tensor.
        TypeError: likewise.
    """
    place = here[0]
    if init not in INITS:
        raise ValueError(
            f"init must be {', '.join(map(repr, INITS[:-1]))} or {INITS[-1]!r}, got {short(init)}."
            f"{did_you_mean(init, INITS) if isinstance(init, str) else ''}"  # pyright: ignore[reportUnnecessaryIsInstance] - callers may be untyped
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
            later = None if optimizer is None else weakref.ref(optimizer)
            return LazyChange(here, place.path, mine, init, later)
    except (ValueError, TypeError) as error:
        raise with_path(place.path, error) from error.__cause__
    return change_of(here, original, request, init)


def _requests(
    target: str | Mapping[str, Any], constraint: Any, view: str | None, arguments: dict[str, Any]
) -> dict[str, Request]:
    if isinstance(target, str):
        if constraint is None:
            raise SpecError(f"No constraint was given for {short(target)}.")
        return {target: _parse(target, constraint, view, arguments)}
    if not isinstance(target, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance] - callers may be untyped
        raise SpecError(
            "The target must be a path, a glob, or a mapping from these to constraints, got "
            f"{type(target).__name__}."
        )
    for key in target:
        if not isinstance(key, str):  # pyright: ignore[reportUnnecessaryIsInstance] - callers may be untyped
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
        raise with_path(short(target, 200)[1:-1], error) from error.__cause__
