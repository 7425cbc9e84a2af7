"""Whose line a warning is about, and what the tensor of an error is called there."""

from __future__ import annotations

import sys
from types import FrameType

import torch
from torch import nn


def frames_to_the_caller() -> int:
    """The ``stacklevel`` of the function that called this package, for who calls this."""
    level, frame = 1, sys._getframe(1)
    package = __name__.partition(".")[0]
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(
        (f"{package}.", "torch.nn.modules")
    ):
        level, frame = level + 1, frame.f_back
    return level


def path_for_the_caller(parametrizations: nn.Module, name: str) -> str:
    """The path of a parametrized tensor from the outermost module that is at work.

    A module knows the names of its own tensors, and not where it is in a model; but the model is
    among those that are being called.

    Args:
        parametrizations: what the tensor is computed by.
        name: its name in its own module, which it keeps if no other module is at work.
    """
    # A compiler has no frames.
    if torch.compiler.is_compiling():
        return name
    models: list[nn.Module] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, nn.Module) and caller not in models:
            models.append(caller)
        frame = frame.f_back
    for model in reversed(models):
        for path, module in model.named_modules():
            if module is parametrizations and path:
                return path.replace("parametrizations.", "")
    return name
