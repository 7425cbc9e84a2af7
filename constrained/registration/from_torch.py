"""Converting modules that ``torch.nn.utils.parametrize`` has parametrized, or geotorch by it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from constrained.parametrized.evaluation_mode import without_side_effects
from constrained.parametrized.module_class import base_class, set_class
from constrained.parametrized.parametrization_list import ParametrizationList
from constrained.parametrized.parametrizations import Parametrizations


def convert_from_torch(module: nn.Module) -> None:
    """Replace torch's lists of parametrizations in a module by those of this package."""
    existing = module._modules.get("parametrizations")
    if existing is None or (
        isinstance(existing, Parametrizations)
        and all(isinstance(v, ParametrizationList) for v in existing.values())
    ):
        return
    converted = Parametrizations(module)
    if isinstance(existing, Parametrizations):
        converted._tensor_order = existing.tensor_order()
    else:
        converted._tensor_order = (*existing._modules, *converted.tensor_order())
    for name, parametrizations in existing.named_children():
        converted[name] = converted_list(parametrizations)
    base = base_class(module)
    module._modules["parametrizations"] = converted
    set_class(module, base)


def converted_list(parametrizations: Any) -> ParametrizationList:
    """A list of this package with the contents of one of torch's, or the list if it is its own."""
    if isinstance(parametrizations, ParametrizationList):
        return parametrizations
    converted = ParametrizationList.__new__(ParametrizationList)
    state = dict(parametrizations.__dict__)
    converted.__setstate__(state)
    with torch.no_grad(), without_side_effects(converted):
        converted.shape = converted().shape
    converted.moved = None
    converted.persistent = True
    converted.is_parameter = any(isinstance(t, nn.Parameter) for t in converted.originals())
    return converted
