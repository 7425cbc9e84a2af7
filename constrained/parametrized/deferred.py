"""What waits in a lazy module for the shapes of its tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn


def waiting(module: nn.Module) -> dict[str, Any]:
    """What waits in a module, by the names of its tensors. Not a copy."""
    return module.__dict__.get("_waiting", {})


def wait(module: nn.Module, name: str, item: Any) -> None:
    """Let something wait for a tensor. Give the module its new class afterwards."""
    module.__dict__.setdefault("_waiting", {})[name] = item


def stop_waiting(module: nn.Module, name: str) -> None:
    """Undo `wait`. Give the module its new class afterwards."""
    items = module.__dict__["_waiting"]
    del items[name]
    if not items:
        del module.__dict__["_waiting"]


def waiting_tensors(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Everything that waits in a model, each once, with the path that it was asked for by."""
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for name, item in waiting(module).items():
            if id(item) not in seen:
                seen.add(id(item))
                yield f"{prefix}.{name}" if prefix else name, item
