"""Evaluating parametrizations without changing their state and without drawing random numbers."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from torch import nn


@contextmanager
def without_side_effects(*roots: nn.Module) -> Generator[None]:
    """Inside, modules are in evaluation mode, in which power iterations and dropout do not run."""
    training = [m for root in roots for m in root.modules() if m.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
