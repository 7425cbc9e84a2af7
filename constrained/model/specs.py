"""The constraints of a whole model as plain data."""

from __future__ import annotations

from typing import Any

from torch import nn

from constrained.attached.attached_constraint import AttachedConstraint
from constrained.parametrized.deferred import deferred_tensors
from constrained.parametrized.tensor_locations import constrained_tensors


def spec(model: nn.Module) -> dict[str, dict[str, Any]]:
    """The constraints of a model as plain data, by the paths of the tensors.

    ``constrain(fresh_model, spec(model))`` applies them again; JSON and YAML can hold them.
    Tensors parametrized by foreign modules are left out. Those of lazy modules, which will be
    constrained when they have a shape, come last.

    Args:
        model: the model.

    Example:
        >>> import torch, constrained
        >>> model = constrained.constrain(torch.nn.Linear(3, 3), "weight", "ball(radius=2.0)")
        >>> constrained.spec(model)
        {'weight': {'name': 'ball', 'radius': 2.0}}
    """
    found = {
        path: holder.spec() if isinstance(holder, AttachedConstraint) else constraint.spec()
        for path, holder, constraint in constrained_tensors(model)
    }
    later = {path: item.spec() for path, item in deferred_tensors(model)}
    return found | {path: plain for path, plain in later.items() if plain is not None}
