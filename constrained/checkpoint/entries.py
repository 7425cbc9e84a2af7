"""From a value in a checkpoint to the entries that the model's own parametrization has for it."""

from __future__ import annotations

import copy
from contextvars import ContextVar
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from constrained.atomic.sharded import is_shard, whole, write
from constrained.constraint.base import Constraint
from constrained.constraint.errors import InfeasibleError
from constrained.parametrized.parametrization_list import ParametrizationList
from constrained.parametrized.right_inverse import invert
from constrained.torch_internals.modules import submodules
from constrained.torch_internals.tensors import has_values

#: What `load_state_dict` does with a plain value outside of its set.
OnInfeasible = Literal["error", "project"]

#: The choice of the `load_state_dict` that is running.
on_infeasible: ContextVar[OnInfeasible] = ContextVar("on_infeasible", default="error")


def own_entries(parametrizations: ParametrizationList) -> dict[str, Any]:
    """What a list saves into a state dict now: the tensors themselves, and nothing is evaluated."""
    entries: dict[str, Any] = {}
    for path, module in submodules(parametrizations, remove_duplicate=False):
        is_list = isinstance(module, ParametrizationList)
        save = nn.Module._save_to_state_dict if is_list else type(module)._save_to_state_dict  # pyright: ignore[reportUnknownVariableType] - torch declares no types here
        save(module, entries, f"{path}." if path else "", True)
    return entries


def entries_for(
    parametrizations: ParametrizationList, value: Any, path: str, assign: bool
) -> dict[str, Any]:
    """The entries that a list would have at a value. Nothing of the model is written.

    Args:
        parametrizations: the list.
        value: what the checkpoint holds; a shard or a whole tensor.
        path: the path of the tensor, for messages.
        assign: whether the entries replace the model's tensors, with the dtype and device of
            ``value``; else they are copied into the model's tensors.

    Raises:
        TypeError: if ``value`` is not a tensor.
        ValueError: if it has another shape, or cannot be mapped to originals.
        InfeasibleError: if it lies outside of the set and is not to be projected.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"expected a tensor in the checkpoint, got {type(value).__name__}.")
    if value.shape != parametrizations.shape and not parametrizations.unsafe:
        raise ValueError(
            f"size mismatch for {path}: copying a param with shape {value.shape} from "
            f"checkpoint, the shape in current model is {parametrizations.shape}."
        )
    value, known = whole(value.detach()), parametrizations.originals()[0]
    replaces = assign or known.is_meta
    wanted = value if replaces else value.to(known.device, known.dtype)
    member = member_of(parametrizations.constraint(), value, wanted)
    return _inverted(parametrizations, member, replaces)


def member_of(constraint: Constraint | None, value: Tensor, wanted: Tensor) -> Tensor:
    """``wanted``, which is ``value`` in the model's precision, or a member of the set near it."""
    if constraint is None:
        return wanted
    constraint.check_tensor(wanted)
    if not has_values(wanted):
        return wanted
    if on_infeasible.get() == "project":
        # A member of a closed set is not moved: a trained model goes on to compute what it did.
        # The projection onto an open set leaves its interior alone, and moves its boundary.
        is_member = constraint.closed and bool(constraint.contains(wanted).all())
        return wanted if is_member else constraint.project(wanted)
    try:
        constraint.check_member(wanted)
    except InfeasibleError as error:
        if _is_coarser(value.dtype, wanted.dtype) and bool(constraint.contains(value).all()):
            # It was a member in the lower precision of the checkpoint.
            return constraint.project(wanted)
        raise InfeasibleError(
            f"{error} constrained.load_state_dict(model, state_dict, on_infeasible='project') "
            "loads that."
        ) from None
    return wanted


def _inverted(
    parametrizations: ParametrizationList, value: Tensor, replaces: bool
) -> dict[str, Any]:
    chain = parametrizations.chain()
    nested: dict[str, Any] = cast(Any, parametrizations._modules).get("parametrizations", {})
    if nested or not all(isinstance(m, Constraint) for m in chain):
        # The right inverse of a foreign module may write into it.
        parametrizations = copy.deepcopy(parametrizations)
        nested = cast(Any, parametrizations._modules).get("parametrizations", {})
    originals = invert(parametrizations, value, replace=replaces)
    first = chain[0]
    if isinstance(first, Constraint) and first.has_own_map() and has_values(value):
        originals = first.canonical(*originals)
    entries = own_entries(parametrizations)
    known = parametrizations.originals()
    for name, original, old in zip(parametrizations.names(), originals, known, strict=True):
        if name in nested:
            # The original is parametrized itself.
            inner = _inverted(nested[name], original, replaces)
            entries.update({f"parametrizations.{name}.{key}": t for key, t in inner.items()})
        elif is_shard(old):
            entries[name] = torch.empty_like(old)
            write(entries[name], original)
        else:
            entries[name] = original
    return entries


def _is_coarser(a: torch.dtype, b: torch.dtype) -> bool:
    inexact = a.is_floating_point or a.is_complex
    return inexact and torch.finfo(a).eps > torch.finfo(b).eps
