"""Load a state dict into a constrained model, all or nothing; write one without constraints."""

from __future__ import annotations

import copy
import re
from collections import OrderedDict
from collections.abc import Container, Iterator, Mapping
from typing import Any, get_args

import torch
from torch import Tensor, nn

from constrained.atomic.contents import store
from constrained.atomic.interrupts import defer_interrupts
from constrained.atomic.sharded import whole
from constrained.atomic.undo import all_or_nothing, tensors_of
from constrained.attached.attached_constraint import attached_constraints
from constrained.checkpoint.entries import OnInfeasible, member_of
from constrained.checkpoint.entries import on_infeasible as _on_infeasible
from constrained.constraint.registry import did_you_mean
from constrained.model.error_messages import with_path
from constrained.parametrized.checkpoint_metadata import without_tensors
from constrained.parametrized.parametrization_list import ParametrizationList
from constrained.parametrized.parametrizations import Parametrizations
from constrained.parametrized.tensor_locations import (
    check_model,
    is_constrained,
    is_parametrized,
    locations,
)
from constrained.registration.wrappers import check_not_offloaded
from constrained.torch_internals.modules import put_versions, versions_in
from constrained.torch_internals.shards import is_managed

_CHOICES: tuple[str, ...] = get_args(OnInfeasible)


def load_state_dict(
    model: nn.Module,
    state_dict: Mapping[str, Any],
    *,
    strict: bool = True,
    assign: bool = False,
    on_infeasible: OnInfeasible = "error",
) -> Any:
    """Load a checkpoint, plain or constrained, into a constrained model: all or nothing.

    ``model.load_state_dict`` takes the same checkpoints: those of the model itself; plain ones,
    whose values go through the right inverses; those of ``weight_norm``, ``spectral_norm`` and
    ``orthogonal`` of torch, and of geotorch's manifolds.

    The metadata of a state dict says which constraint each tensor was written for. A value written
    for another constraint, or for other arguments, goes through the right inverse like a plain one.
    Some file formats drop the metadata. Then keys and shapes that match the model's own are taken
    to be its own. Where foreign keys are ambiguous, a warning says what was assumed. In that case,
    and for unknown keys, load the checkpoint into the model that wrote it, and load that model's
    ``baked_state_dict(model, everything=True)`` here.

    Args:
        model: the model. Its parameters keep their identity, unless ``assign``.
        state_dict: the checkpoint.
        strict: whether the keys of the checkpoint and of the model must be the same.
        assign: replace the model's tensors by those of the checkpoint (or by what the right
            inverses make of them), with their dtype and device; by default numbers are copied.
        on_infeasible: what happens to a plain value outside of its set: ``"error"``, or
            ``"project"``, which loads the point that the constraint's ``project`` gives. It is
            the counterpart of ``init`` of `constrain`.

    Returns:
        What ``model.load_state_dict`` returns: ``missing_keys`` and ``unexpected_keys``.

    Raises:
        RuntimeError: torch's own, which lists everything that does not fit: keys and shapes, values
            outside of their sets, NaN and infinity in constrained tensors. The model is unchanged.
        ValueError: if ``on_infeasible`` is neither ``"error"`` nor ``"project"``.
    """
    if on_infeasible not in _CHOICES:
        raise ValueError(
            f"on_infeasible must be 'error' or 'project', got {on_infeasible!r}."
            f"{did_you_mean(str(on_infeasible), _CHOICES)}"
        )
    check_model(model)
    with defer_interrupts():
        modules = list(model.modules())
        token = _on_infeasible.set(on_infeasible)
        try:
            with all_or_nothing(modules, tensors_of(modules), extra_state=True):
                found = model.load_state_dict(state_dict, strict=strict, assign=assign)
                _load_members(model, state_dict)
                return found
        finally:
            _on_infeasible.reset(token)


@torch.no_grad()
def _load_members(model: nn.Module, state_dict: Mapping[str, Any]) -> None:
    """Treat loaded tensors that are plain parameters with ``mode="project"`` as all others."""
    for path, tensor in attached_constraints(model):
        value: Any = state_dict.get(path)
        if tensor.mode == "project" and isinstance(value, Tensor):
            parameter = tensor()
            wanted = whole(parameter.detach())
            try:
                member = member_of(tensor.constraint(), whole(value.detach()), wanted)
            except (ValueError, TypeError) as error:
                raise with_path(path, error) from error.__cause__
            if member is not wanted:
                store(parameter, member)


@torch.no_grad()
def baked_state_dict(model: nn.Module, *, everything: bool = False) -> dict[str, Any]:
    """The state dict that the model would have without constraints: values under plain names.

    A model without constraints can load it. Its keys are in that model's order. Tensors
    parametrized by ``register_parametrization``, torch's or this package's, are part of the model:
    they keep their own keys, because the model's class expects them.

    Args:
        model: the model.
        everything: write the values of such tensors under plain names too, for a model that has no
            such parametrizations.

    Returns:
        Copies that share no memory with the model or with each other. Shards are gathered into
        whole tensors, so every process must call this. The model is unchanged.

    Raises:
        RuntimeError: if the model is offloaded, so that its plain tensors hold no numbers, or if a
            value was written in place.
    """
    parametrized = {
        path: place
        for path, place in locations(model).items()
        if is_constrained(place) or (everything and is_parametrized(place.module, place.name))
    }
    state = model.state_dict()
    order = {key: i for i, key in enumerate(_plain_keys(model, "", parametrized))}
    rank: dict[str, int] = {}
    entries: dict[str, Any] = {}
    latest = -1
    for key, value in state.items():
        if not _belongs(key, parametrized):
            # An unknown key, written by its module, stays behind its predecessor.
            rank[key] = latest = order.get(key, latest)
            entries[key] = whole(value.detach()).clone() if isinstance(value, Tensor) else value
    for path, place in parametrized.items():
        if getattr(place.tensor, "persistent", True):
            rank[path] = order[path]
            check_not_offloaded(place.module, path)
            entries[path] = _value(place.tensor)
    baked: Any = OrderedDict((key, entries[key]) for key in sorted(entries, key=rank.__getitem__))
    metadata = versions_in(state)
    if metadata is not None:
        # torch's versions of modules, without those of modules that a plain model does not have.
        gone = tuple(f"{_inside(path)}." for path in parametrized)
        left = {_parent(_inside(path)) for path in parametrized}
        left -= {_parent(key) for key in metadata if not f"{key}.".startswith(gone)}
        kept = (k for k in metadata if k not in left and not f"{k}.".startswith(gone))
        put_versions(
            baked, OrderedDict((k, without_tensors(metadata[k], k, parametrized)) for k in kept)
        )
    return baked


def _inside(path: str) -> str:
    """The path of the list that parametrizes a tensor."""
    prefix, dot, name = path.rpartition(".")
    return f"{prefix}{dot}parametrizations.{name}"


def _parent(path: str) -> str:
    return path.rpartition(".")[0]


def _belongs(key: str, parametrized: Container[str]) -> bool:
    """Whether a key of a state dict belongs to one of the parametrized tensors."""
    inside = re.finditer(r"(?:^|(?<=\.))parametrizations\.(?=([^.]+)\.)", key)
    return any(key[: found.start()] + found[1] in parametrized for found in inside)


def _value(parametrizations: Any) -> Tensor:
    if isinstance(parametrizations, ParametrizationList) and (
        parametrizations.is_pure() or is_managed(parametrizations)
    ):
        return parametrizations.value().detach().clone()
    # Evaluated on a copy, since a foreign module may write into itself.
    return whole(copy.deepcopy(parametrizations)().detach()).clone()


def _plain_keys(module: nn.Module, prefix: str, baked: Container[str]) -> Iterator[str]:
    """The keys of the state dict that the model would have without constraints, in order."""
    container: Any = module._modules.get("parametrizations") if is_parametrized(module) else None
    every: dict[str, Any] = {} if container is None else container._modules
    lists = {name: found for name, found in every.items() if prefix + name in baked}
    places = container.tensor_order() if isinstance(container, Parametrizations) else tuple(lists)
    order = {name: i for i, name in enumerate(places)}
    kept = {name: getattr(found, "is_parameter", True) for name, found in lists.items()}
    parameters = [*module._parameters, *(name for name in lists if kept[name])]
    buffers = [*module._buffers, *(name for name in lists if not kept[name])]
    for names in (parameters, buffers):
        yield from (prefix + n for n in sorted(names, key=lambda n: order.get(n, len(order))))
    yield f"{prefix}_extra_state"
    for name, child in module._modules.items():
        if child is container:
            for key, found in every.items():
                if key not in lists:
                    yield from _plain_keys(found, f"{prefix}{name}.{key}.", baked)
        elif child is not None:
            yield from _plain_keys(child, f"{prefix}{name}.", baked)
