"""State dicts of constrained models: written as a plain model's, and loaded, all or nothing."""

from __future__ import annotations

import copy
import re
from collections import OrderedDict
from collections.abc import Container, Iterator, Mapping
from typing import Any, get_args

import torch
from torch import Tensor, nn

from constrained.atomic.interrupts import defer_interrupts
from constrained.atomic.sharded import whole
from constrained.atomic.undo import all_or_nothing, tensors_of
from constrained.checkpoint.entries import OnInfeasible
from constrained.checkpoint.entries import on_infeasible as _on_infeasible
from constrained.constraint.registry import did_you_mean
from constrained.parametrized.checkpoint_metadata import without_tensors
from constrained.parametrized.locations import (
    check_model,
    is_constrained,
    is_parametrized,
    locations,
)
from constrained.parametrized.parametrization_list import ParametrizationList
from constrained.parametrized.parametrizations import Parametrizations
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
    ``orthogonal`` of torch, and of geotorch's manifolds. A state dict says, in its metadata, which
    constraint each tensor was written for; the value under another one, or under other arguments,
    goes through the right inverse as a plain one does. Without metadata, as after a detour through
    a format that has none, keys and shapes that are the model's own are taken as such. Where
    foreign keys leave open what they mean a warning says what was assumed; then, and for keys that
    are not known, load the checkpoint into the model that wrote it, and that model's
    ``baked_state_dict(model, everything=True)`` here.

    Args:
        model: the model. Its parameters keep their identity, unless ``assign``.
        state_dict: the checkpoint.
        strict: whether every key must have its counterpart.
        assign: put the checkpoint's tensors, or what they are mapped to, in the place of the
            model's, with their dtype and device; else they are copied.
        on_infeasible: what becomes of a plain value outside of its set: ``"error"``, or
            ``"project"``, which loads the point that the constraint's ``project`` gives. It is
            to a checkpoint what ``init`` is to `constrain`.

    Returns:
        What ``model.load_state_dict`` returns: ``missing_keys`` and ``unexpected_keys``.

    Raises:
        RuntimeError: torch's, with everything that does not fit: keys and shapes, values outside
            of their sets, NaN and infinity in constrained tensors. The model is as it was.
        ValueError: if ``on_infeasible`` is neither of the two.
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
                return model.load_state_dict(state_dict, strict=strict, assign=assign)
        finally:
            _on_infeasible.reset(token)


@torch.no_grad()
def baked_state_dict(model: nn.Module, *, everything: bool = False) -> dict[str, Any]:
    """The state dict that the model would have without constraints: values under plain names.

    A model that nobody constrained loads it, and the constraints have left no trace but the
    values. Keys come in the order in which that model would have them. What a
    ``register_parametrization`` did, torch's or this package's, belongs to the model: such tensors
    keep their own keys, which the model's class expects.

    Args:
        model: the model.
        everything: write the values of such tensors under plain names too, as for a model that is
            to be constrained instead.

    Returns:
        Copies, which share no memory with the model or with each other, and whole ones of shards
        (then every process must call this); the model is unchanged.

    Raises:
        RuntimeError: if the model is offloaded, so that there are no numbers of its plain tensors;
            or if a value was written in place.
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
            # A key that only its module can explain stays behind its predecessor.
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
        # torch's versions of modules, without those that a plain model does not have.
        gone = tuple(f"{_inside(path)}." for path in parametrized)
        left = {_parent(_inside(path)) for path in parametrized}
        left -= {_parent(key) for key in metadata if not f"{key}.".startswith(gone)}
        kept = (k for k in metadata if k not in left and not f"{k}.".startswith(gone))
        put_versions(
            baked, OrderedDict((k, without_tensors(metadata[k], k, parametrized)) for k in kept)
        )
    return baked


def _inside(path: str) -> str:
    """Where the list is that parametrizes a tensor."""
    prefix, dot, name = path.rpartition(".")
    return f"{prefix}{dot}parametrizations.{name}"


def _parent(path: str) -> str:
    return path.rpartition(".")[0]


def _belongs(key: str, parametrized: Container[str]) -> bool:
    """Whether a key of a state dict is a part of one of the parametrized tensors."""
    inside = re.finditer(r"(?:^|(?<=\.))parametrizations\.(?=([^.]+)\.)", key)
    return any(key[: found.start()] + found[1] in parametrized for found in inside)


def _value(parametrizations: Any) -> Tensor:
    if isinstance(parametrizations, ParametrizationList) and (
        parametrizations.is_pure() or is_managed(parametrizations)
    ):
        return parametrizations.value().detach().clone()
    # A foreign module may write into itself when it is evaluated.
    return whole(copy.deepcopy(parametrizations)().detach()).clone()


def _plain_keys(module: nn.Module, prefix: str, baked: Container[str]) -> Iterator[str]:
    """The keys of the model's state dict, in their order, with the values of baked tensors."""
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
