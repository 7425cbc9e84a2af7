"""`release`: constrained tensors become plain parameters again."""

from __future__ import annotations

from typing import TypeVar

from torch import nn
from torch.optim import Optimizer

from constrained.atomic.interrupts import allow_interrupt, defer_interrupts
from constrained.atomic.undo import all_or_nothing, around, tensors_of
from constrained.attached.attached_constraint import AttachedConstraint, detach, lost_parameters
from constrained.constraint.errors import raise_all
from constrained.constraint.plain_data import short
from constrained.constraint.registry import did_you_mean
from constrained.model.lazy import stop
from constrained.model.targets import select
from constrained.parametrized.deferred import deferred
from constrained.parametrized.tensor_locations import (
    Location,
    is_constrained,
    is_parametrized,
    locations,
)
from constrained.registration.outside_owners import check_other_owners
from constrained.registration.param_groups import check_holds, check_optimizer
from constrained.registration.remove import remove_at
from constrained.registration.wrappers import check_not_wrapped

M = TypeVar("M", bound=nn.Module)


def release(
    module: M, target: str = "**", *, bake: bool = True, optimizer: Optimizer | None = None
) -> M:
    """Make constrained tensors plain parameters again.

    Only what `constrain` did is undone. What ``register_parametrization`` did, torch's or this
    package's, belongs to the model, such as the weight norm of an audio encoder. A glob does not
    match such a tensor; it becomes plain if ``target`` is its own path. Tied tensors stay tied. It
    is an error if a tensor is tied to one of a module outside of ``module``.

    Args:
        module: the model.
        target: as in `constrain`; every constrained tensor by default.
        bake: leave each tensor at its value; else at its free parameter, which is possible only if
            there is a single one. In ``remove_parametrizations``, torch's and that of
            `constrained.parametrize`, this is called ``leave_parametrized``.
        optimizer: an optimizer that holds the free parameters: it is given the plain tensors.

    Returns:
        ``module``, of the type that it has.

    Raises:
        ValueError: if a target other than ``"**"`` matches no constrained tensor, a tensor that
            has several free parameters should be left unbaked, a module outside of this one has
            it as well, or the optimizer holds nothing of a tensor that is trained. The model is
            then as it was.
        RuntimeError: if DistributedDataParallel or FSDP has wrapped the model, or it is offloaded.

    Example:
        >>> import torch
        >>> from constrained import constrain, release
        >>> layer = release(constrain(torch.nn.Linear(4, 4), "weight", "orthogonal"))
        >>> isinstance(layer.weight, torch.nn.Parameter)
        True
    """
    check_optimizer(optimizer)
    if not isinstance(target, str):  # pyright: ignore[reportUnnecessaryIsInstance] - callers may be untyped
        raise TypeError(f"The target must be a path or a glob, got {type(target).__name__}.")
    constrained = {path for path, place in locations(module).items() if _is_released(place)}
    chosen: list[list[Location]] = []
    lost = lost_parameters(module)
    if target in lost:
        detach(*lost[target])
        return module
    if target != "**" or constrained:
        selection = select(module, {target: None})
        raise_all("The target is not valid", selection.errors)
        matched = [choice.places for choice in selection.choices]
        is_path = any(place.path == target for here in matched for place in here)
        chosen = [here for here in matched if _is_released(here[0], named=is_path)]
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
        for owner in lost.values() if target == "**" else ():
            detach(*owner)
        for here in chosen:
            allow_interrupt()
            place = here[0]
            if place.name in deferred(place.module):
                stop(here)
            elif isinstance(place.holder, AttachedConstraint):
                for other in here:
                    detach(other.module, other.name)
            else:
                places = [_owner(each) for each in here]
                remove_at(module, place.path, places, bake, optimizer=optimizer)
    return module


def _is_released(place: Location, *, named: bool = False) -> bool:
    """Whether a tensor becomes plain. If `constrain` did not parametrize it, it must be named."""
    if isinstance(place.holder, AttachedConstraint) or place.name in deferred(place.module):
        return True
    return is_constrained(place) or (named and is_parametrized(*_owner(place)))


def _owner(place: Location) -> tuple[nn.Module, str]:
    return place.module, place.name
