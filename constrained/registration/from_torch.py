"""Modules that torch's own engine has parametrized, or geotorch through it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from constrained.parametrized.evaluation_mode import without_side_effects
from constrained.parametrized.module_class import base_class, set_class
from constrained.parametrized.parametrization_list import ParametrizationList
from constrained.parametrized.parametrizations import Parametrizations


def adopt(module: nn.Module) -> None:
    """Turn what torch's own engine put into a module into what this one works with."""
    existing = module._modules.get("parametrizations")
    if existing is None or (
        isinstance(existing, Parametrizations)
        and all(isinstance(v, ParametrizationList) for v in existing.values())
    ):
        return
    adopted = Parametrizations(module)
    if isinstance(existing, Parametrizations):
        adopted._places = existing.places()
    else:
        adopted._places = (*existing._modules, *adopted.places())
    for name, parametrizations in existing.named_children():
        adopted[name] = adopted_list(parametrizations)
    base = base_class(module)
    module._modules["parametrizations"] = adopted
    set_class(module, base)


def adopted_list(parametrizations: Any) -> ParametrizationList:
    """A list of this engine with the contents of one of either engine."""
    if isinstance(parametrizations, ParametrizationList):
        return parametrizations
    adopted = ParametrizationList.__new__(ParametrizationList)
    state = dict(parametrizations.__dict__)
    adopted.__setstate__(state)
    with torch.no_grad(), without_side_effects(adopted):
        adopted.shape = adopted().shape
    adopted.moved = None
    adopted.persistent = True
    adopted.is_parameter = any(isinstance(t, nn.Parameter) for t in adopted.originals())
    return adopted
