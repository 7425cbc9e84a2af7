"""`save`: the weights of a model and its constraints in one file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.distributed
from torch import Tensor, nn

from constrained.atomic.sharded import is_shard, whole
from constrained.attached.attached_constraint import AttachedConstraint, attached_constraints
from constrained.checkpoint.weights_file import Record, place_of, write
from constrained.checkpoint.wrapper_names import Unwrapped
from constrained.constraint.base import Constraint
from constrained.constraint.description import full_spec
from constrained.evaluation.evaluated_tensor import chain_repr
from constrained.parametrized.parametrization_list import ParametrizationList
from constrained.parametrized.tensor_locations import check_model, parametrized_tensors
from constrained.torch_internals.modules import submodules, versions_in
from constrained.torch_internals.shards import is_managed


@torch.no_grad()
def save(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write the weights of a model and its constraints into one file of safetensors.

    The file has what `load` needs to give a new model the same constraints and the same weights,
    bit for bit. The tensors are those of ``model.state_dict()``, free parameters under their own
    keys, so that whatever reads safetensors reads them. Names that wrappers put into the keys
    (``module.``, ``_orig_mod.``, ``_forward_module.``) are left out. The constraints, and the
    versions of this package and of torch, stand as JSON in the metadata of the file. For a file
    that a model loads without constraints, write `baked_state_dict` instead.

    The file that was there before stays as it is until the new one is complete. If the process is
    killed meanwhile, a hidden file ``.<name>.<digits>.tmp`` may be left beside it.

    Where FSDP has cut parameters into shards, every process must call this, and the first one
    writes.

    Args:
        model: the model, which may be wrapped by DDP, ``torch.compile`` or DeepSpeed. Tensors that
            others parametrized than constraints are saved too; `load` expects them to be
            parametrized in the same way.
        path: of the file. In a folder it is called ``model.safetensors``.

    Raises:
        OSError: if the file cannot be written.
        TypeError: for a tensor that has no shape yet, no numbers, or a layout or dtype that
            safetensors does not know, and for extra state that JSON cannot hold. The sentence
            names it.
        RuntimeError: if the model is offloaded, or if a value was written in place.

    Example:
        >>> import os, tempfile
        >>> import torch, constrained
        >>> model = constrained.constrain(torch.nn.Linear(3, 3), "weight", "orthogonal")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     constrained.save(model, os.path.join(folder, "layer.safetensors"))
        ...     new = torch.nn.Linear(3, 3)
        ...     new = constrained.load(os.path.join(folder, "layer.safetensors"), new)
        >>> torch.equal(new.weight, model.weight)
        True
        >>> constrained.spec(new)
        {'weight': {'name': 'orthogonal'}}
    """
    check_model(model)
    place = place_of(path)
    state = model.state_dict()
    names = Unwrapped(state)
    record = recorded(model, names)
    versions = _versions(versions_in(state) or {})
    record.modules = {names.name(path): version for path, version in versions.items()}
    shards = any(isinstance(t, Tensor) and is_shard(t) for t in state.values())
    entries = {names.name(k): whole(t) if isinstance(t, Tensor) else t for k, t in state.items()}
    if len(entries) < len(state):
        raise ValueError("Two tensors have the same name, but for the names of wrappers.")
    together = shards or any(is_managed(module) for _, module in submodules(model))
    if not together:
        write(place, entries, record)
        return
    if torch.distributed.get_rank() == 0:
        write(place, entries, record)
    torch.distributed.barrier()


def recorded(model: nn.Module, names: Unwrapped) -> Record:
    """What `load` has to know of the parametrized tensors of a model."""
    import constrained

    record = Record(versions={"constrained": constrained.__version__, "torch": torch.__version__})
    holders: list[tuple[str, Any]] = [*parametrized_tensors(model), *attached_constraints(model)]
    for path, found in holders:
        name, spec = names.name(path), saved_spec(found)
        if spec is None:
            record.foreign[name] = chain_repr(found)
        else:
            record.constraints[name] = spec
            record.shapes[name] = list(cast("torch.Size", found.shape))
    return record


def saved_spec(holder: nn.Module | AttachedConstraint | None) -> dict[str, Any] | None:
    """The spec with all arguments that tells everything about a tensor; None if there is none."""
    if isinstance(holder, AttachedConstraint):
        return {**full_spec(holder.constraint()), **holder.settings()}
    constraint = None if holder is None else only_constraint(holder)
    return None if constraint is None else full_spec(constraint)


def only_constraint(parametrizations: nn.Module) -> Constraint | None:
    """The constraint by which alone a tensor is parametrized, so that its spec tells everything."""
    if not isinstance(parametrizations, ParametrizationList):
        return None
    chain = parametrizations.chain()
    nested = hasattr(parametrizations, "parametrizations") or parametrizations.unsafe
    return parametrizations.constraint() if len(chain) == 1 and not nested else None


def _versions(metadata: Mapping[str, Any]) -> dict[str, int]:
    """The versions of modules in the metadata of a state dict; constraints are recorded already."""
    found = {path: entry.get("version") for path, entry in metadata.items()}
    return {path: version for path, version in found.items() if type(version) is int}
