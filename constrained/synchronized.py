"""How a batch normalization whose tensors are parametrized becomes an ``nn.SyncBatchNorm``."""

from __future__ import annotations

from torch import nn

from constrained.override import lists, override
from constrained.parametrized_class import is_parametrized_class, set_class
from constrained.torch_internals.rewriters import Convert, wrap_synchronization


def _convert(convert: Convert, module: nn.Module) -> nn.Module:
    """Convert a module, of which torch reads parameters, and whose submodules it passes on."""
    if not is_parametrized_class(type(module)):
        return convert(module)
    parametrized = lists(module)
    before = {}
    try:
        for name, parametrizations in parametrized.items():
            value = getattr(module, name).detach()
            is_parameter = getattr(parametrizations, "is_parameter", True)
            before[name] = override(module, name, nn.Parameter(value) if is_parameter else value)
        converted = convert(module)
    finally:
        for name, instead in before.items():
            override(module, name, instead)
    if converted is not module:
        # Among the submodules that were passed on is the one that holds the parametrizations.
        for name in parametrized:
            converted._parameters.pop(name, None)
            converted._buffers.pop(name, None)
        set_class(converted, type(converted))
    return converted


wrap_synchronization(_convert)
