"""Plain and constrained state dicts."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from constrained.places import is_parametrized
from constrained.select import places
from constrained.sharded import whole


@torch.no_grad()
def baked_state_dict(model: nn.Module) -> dict[str, Any]:
    """The state dict that the model would have without constraints: values under plain names.

    A model that nobody constrained loads it, and the constraints have left no trace but the
    values. Values are copies, and whole ones of shards (then every process must call this); the
    model is unchanged.
    """
    values = {
        path: getattr(place.module, place.name).detach().clone()
        for path, place in places(model).items()
        if is_parametrized(place.module, place.name)
    }
    baked: dict[str, Any] = {}
    for key, tensor in model.state_dict().items():
        path = next((p for p in values if _belongs_to(key, p)), None)
        if path is None:
            is_tensor = isinstance(tensor, torch.Tensor)
            baked[key] = whole(tensor.detach()).clone() if is_tensor else tensor
        elif path not in baked:
            baked[path] = values[path]
    return baked


def _belongs_to(key: str, path: str) -> bool:
    prefix, _, name = path.rpartition(".")
    dot = f"{prefix}." if prefix else ""
    return key.startswith(f"{dot}parametrizations.{name}.")
