"""Requests for tensors of a lazy module, which wait until the tensors have shapes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from constrained.torch_internals.modules import submodules

# Pickles of lazy modules contain this name.
_ATTRIBUTE = "_waiting"


def deferred(module: nn.Module) -> dict[str, Any]:
    """The dictionary of the requests that wait in a module, by the names of its tensors."""
    return module.__dict__.get(_ATTRIBUTE, {})


def defer(module: nn.Module, name: str, request: Any) -> None:
    """Let a request wait for a tensor. The caller gives the module its new class afterwards."""
    module.__dict__.setdefault(_ATTRIBUTE, {})[name] = request


def drop_deferred(module: nn.Module, name: str) -> None:
    """Undo `defer`. The caller gives the module its new class afterwards."""
    requests = module.__dict__[_ATTRIBUTE]
    del requests[name]
    if not requests:
        del module.__dict__[_ATTRIBUTE]


def deferred_tensors(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Every request that waits in a model, once, with the first path of its tensor."""
    seen: set[int] = set()
    for prefix, module in submodules(model):
        for name, request in deferred(module).items():
            if id(request) not in seen:
                seen.add(id(request))
                yield f"{prefix}.{name}" if prefix else name, request
