"""`load`: a model gets the constraints and the weights of a file, all or nothing."""

from __future__ import annotations

import os
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from constrained.atomic.interrupts import allow_interrupt, defer_interrupts
from constrained.atomic.sharded import is_shard, write
from constrained.atomic.undo import all_or_nothing, tensors_of
from constrained.checkpoint.saved_constraints import UnfitError, constrain_as_saved
from constrained.checkpoint.weights_file import Record, place_of, read
from constrained.checkpoint.wrapper_names import Unwrapped
from constrained.parametrized.tensor_locations import Location, check_model, locations
from constrained.registration.stale_parameters import listed
from constrained.torch_internals.modules import put_versions, versions_in

M = TypeVar("M", bound=nn.Module)


def load(path: str | os.PathLike[str], model: M, *, assign: bool = False) -> M:
    """Read a file of `save`: the model gets its constraints and its weights, all or nothing.

    A tensor that the file has constrained, and the model not yet, is constrained as by
    ``constrain(model, spec)``; then the weights are the saved ones, bit for bit. Of a tensor that
    the model has constrained already, the constraint must be the same. Make the optimizer
    afterwards. Names that wrappers put
    into the keys (``module.``, ``_orig_mod.``, ``_forward_module.``) do not matter, on either side.

    Any other file of safetensors is loaded as `load_state_dict` loads a state dict: values of
    constrained tensors under plain names go through their right inverses.

    Nothing in a file is executed: constraints are looked up by their names, as in a config.

    Args:
        path: of the file, or of a folder with a ``model.safetensors``.
        model: of the class and the sizes of the one that was saved. Tensors of lazy modules get
            their shapes from the file.
        assign: put the tensors of the file in the place of the model's, with their dtypes, on the
            CPU; else their numbers are copied, into the dtypes that the model has. A model on the
            meta device needs it; what is no part of state dicts stays there, with a warning.

    Returns:
        ``model``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no file of safetensors, or damaged; if it does not fit the model in
            the names, shapes, ties or constraints of its tensors; or for NaN or infinity in
            constrained ones. The model is as it was.
        RuntimeError: if tensors are to be constrained of a model that DistributedDataParallel or
            FSDP has wrapped: load before wrapping.

    Example:
        >>> import os, tempfile
        >>> import torch, constrained
        >>> model = constrained.constrain(torch.nn.Linear(2, 2), "weight", "ball(radius=0.5)")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     constrained.save(model, folder)
        ...     new = constrained.load(folder, torch.nn.Linear(2, 2))
        >>> constrained.spec(new)
        {'weight': {'name': 'ball', 'radius': 0.5}}
    """
    if isinstance(path, nn.Module):
        raise TypeError("load takes the path of the file first, and then the model.")
    check_model(model)
    if not assign:
        _check_has_memory(model)
    place = place_of(path)
    state, record = read(place)
    if assign:
        # The tensors lie in the file, into which somebody may write.
        copies = {id(t): t.clone() for t in state.values() if isinstance(t, Tensor)}
        state = {key: copies.get(id(value), value) for key, value in state.items()}
    with defer_interrupts(), torch.no_grad():
        modules = list(model.modules())
        with all_or_nothing(modules, tensors_of(modules), extra_state=True):
            try:
                if record is not None:
                    constrain_as_saved(model, state, record)
                allow_interrupt()
                _load(model, state, record, assign)
                _warn_of_meta(model)
            except UnfitError as error:
                raise ValueError(f"'{place}' does not fit this model: {error}") from error.__cause__
    return model


def _check_has_memory(model: nn.Module) -> None:
    path = next(_on_meta(model), None)
    if path is not None:
        raise ValueError(
            f"'{path}' is on the meta device, which has no memory for numbers: "
            "load(path, model, assign=True) puts the tensors of the file in its place."
        )


def _warn_of_meta(model: nn.Module) -> None:
    left = list(_on_meta(model))
    if left:
        warnings.warn(
            f"No file has the numbers of {listed(left)}, on the meta device and no part of state "
            "dicts: make what is missing anew.",
            UserWarning,
            stacklevel=3,
        )


def _on_meta(model: nn.Module) -> Iterator[str]:
    """The paths of the tensors on the meta device."""
    for path, place in locations(model).items():
        found = place.tensor
        lists = isinstance(found, nn.Module)
        tensors = (*found.parameters(), *found.buffers()) if lists else (found,)
        if any(tensor.is_meta for tensor in tensors):
            yield path


def _load(model: nn.Module, state: Mapping[str, Any], record: Record | None, assign: bool) -> None:
    """Load the entries of a file, which must be all that the model has."""
    own: dict[str, Any] = model.state_dict(keep_vars=True)
    shared = {key: id(value) for key, value in own.items() if isinstance(value, Tensor)}
    names, saved = Unwrapped(own), Unwrapped(state)
    here = {names.name(key): key for key in (*locations(model), *own)}
    entries: Any = OrderedDict[str, Any]()
    for key, value in state.items():
        name = here.get(saved.name(key), names.prefix + saved.name(key))
        mine = own.get(name)
        if isinstance(mine, Tensor) and isinstance(value, Tensor):
            value = _fitting(names.name(name), mine, value)
        entries[name] = value
    _check_ties(shared, entries, names)
    if record is not None:
        put_versions(entries, _versions(versions_in(model.state_dict()) or {}, record, names))
    ties = list(_ties(model)) if assign else []
    try:
        keys: Any = model.load_state_dict(entries, strict=False, assign=assign)
    except RuntimeError as error:
        raise UnfitError(_sentence(error)) from None
    # A file may have a tied tensor under one of its keys.
    loaded = {shared[key] for key in shared.keys() - set(keys.missing_keys)}
    missing = [names.name(key) for key in keys.missing_keys if shared.get(key) not in loaded]
    unexpected = [names.name(key) for key in keys.unexpected_keys]
    if missing or unexpected:
        parts = [f"the file lacks {listed(missing)}"] if missing else []
        parts += [f"the model lacks {listed(unexpected)}"] if unexpected else []
        tied = record.tied if record else {}
        hints = [f"the file ties '{k}' to '{tied[k]}'" for k in unexpected if k in tied]
        if record is None and any("parametrizations." in key for key in unexpected):
            hints = ["it has no record of constraints, so constrain the model first"]
        raise UnfitError(f"{'; '.join([*parts, *hints[:1]])}.")
    for old, places in ties:
        new = next((place.tensor for place in places if place.tensor is not old), old)
        for place in places:
            tensors = place.module._parameters if place.is_parameter else place.module._buffers
            cast("dict[str, Any]", tensors)[place.name] = new


def _fitting(name: str, mine: Tensor, value: Tensor) -> Tensor:
    """The saved tensor in the form in which the model's own takes it."""
    if value.is_complex() and not (is_lazy(mine) or mine.is_complex()):
        raise UnfitError(f"'{name}' is complex in the file, and real ({mine.dtype}) here.")
    if not is_shard(mine):
        return value
    part = torch.empty_like(mine)
    write(part, value)
    return part


def _check_ties(shared: Mapping[str, int], entries: Mapping[str, Any], names: Unwrapped) -> None:
    """Raise if the file has different numbers for what is one tensor of the model, of one id."""
    known: dict[int, str] = {}
    for key in entries.keys() & shared.keys():
        first = known.setdefault(shared[key], key)
        one, other = entries[first], entries[key]
        both = isinstance(one, Tensor) and isinstance(other, Tensor)
        if both and one is not other and not torch.equal(one, other):
            pair = sorted((names.name(first), names.name(key)))
            raise UnfitError(
                f"'{pair[0]}' and '{pair[1]}' are one tensor here, and have different numbers in "
                "the file."
            )


def _versions(
    own: Mapping[str, Any], record: Record, names: Unwrapped
) -> OrderedDict[str, dict[str, Any]]:
    """The metadata of the saved state dict. That the constraints are the same has been checked."""
    merged: OrderedDict[str, dict[str, Any]] = OrderedDict()
    for path, entry in own.items():
        version = record.modules.get(names.name(path))
        merged[path] = entry if version is None else {**entry, "version": version}
    return merged


def _ties(model: nn.Module) -> Iterator[tuple[Tensor, list[Location]]]:
    """The plain tensors that a model has in several places."""
    found: dict[int, list[Location]] = {}
    for place in locations(model).values():
        found.setdefault(id(place.tensor), []).append(place)
    for places in found.values():
        tensor = places[0].tensor
        if len(places) > 1 and not isinstance(tensor, nn.Module):
            yield tensor, places


def _sentence(error: RuntimeError) -> str:
    """What torch says in several lines, in one."""
    lines = [line.strip() for line in str(error).splitlines()]
    reasons = [line for line in lines if line and not line.startswith("Error(s) in loading")]
    return " ".join(reasons)[:500]
