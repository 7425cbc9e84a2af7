"""How a module with parametrized tensors loads its part of a state dict of any known format.

A checkpoint may hold a tensor's plain value, or the originals of another parametrization. Either
way the value is found first and then mapped to the tensor's own originals. The entries of the state
dict are replaced while ``load_state_dict`` goes through the modules, before torch loads them. So
torch itself loads them, and reports what is missing or wrong, as for any module.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from constrained.atomic.interrupts import allow_interrupt, defer_interrupts
from constrained.checkpoint.saved_tensor import SavedTensor, reason_of
from constrained.model.lazy import materialize_from
from constrained.parametrized.checkpoint_metadata import is_without_record, recorded_chain
from constrained.parametrized.module_class import contribute
from constrained.parametrized.parametrization_list import ParametrizationList
from constrained.parametrized.tensor_locations import is_parametrized


@contribute
def loading_members(base: type, names: tuple[str, ...]) -> dict[str, Any]:
    """The method by which a module of a class with parametrized tensors loads a state dict."""
    del base, names
    return {"_load_from_state_dict": _load_from_state_dict}


def _load_from_state_dict(
    self: Any,
    state_dict: dict[str, Any],
    prefix: str,
    local_metadata: Mapping[str, Any],
    strict: bool,
    missing_keys: list[str],
    unexpected_keys: list[str],
    error_msgs: list[str],
) -> None:
    with defer_interrupts():
        materialize_from(self, state_dict, prefix, local_metadata)
        known = len(unexpected_keys)
        super(self._parametrized, self)._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if is_parametrized(self):
            translate(self, state_dict, prefix, local_metadata, error_msgs)
            unexpected_keys[known:] = [k for k in unexpected_keys[known:] if k in state_dict]


@torch.no_grad()
def translate(
    module: nn.Module,
    state_dict: dict[str, Any],
    prefix: str,
    local_metadata: Mapping[str, Any],
    error_msgs: list[str],
) -> None:
    """Replace the entries of a module's parametrized tensors by those that this model has for them.

    The arguments are those of ``nn.Module._load_from_state_dict``, which has run the module's
    hooks before this. (This is no load hook of torch: one would have to be registered for the time
    of loading, while another thread may be copying the module.)
    """
    assign = local_metadata.get("assign_to_params_buffers", False)
    lists: Any = module.parametrizations
    for name, parametrizations in lists.items():
        if not isinstance(parametrizations, ParametrizationList):
            continue
        allow_interrupt()
        written_for = recorded_chain(local_metadata, name)
        tensor = SavedTensor(module, name, parametrizations, state_dict, prefix, written_for)
        tensor.is_of_others = is_without_record(local_metadata, name)
        try:
            tensor.translate(assign)
        except Exception as error:  # As nn.Module does: all errors are reported together.
            reason = reason_of(error)
            # A foreign module may put a whole tensor into its message.
            reason = reason if len(reason) <= 700 else reason[:697] + "..."
            error_msgs.append(f"'{tensor.path}': {reason}")
            tensor.leave()
