"""What is seen of the constraints of a model: reports, monitors, pictures."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    # These derive from classes of other libraries, and are made when they are asked for.
    if name in ("LightningMonitor", "TransformersMonitor"):
        return import_module("constrained.seeing.callbacks").made(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
