"""What warnings and errors take from the call stack: the user's line, and the model.

A warning should point at the user's line, not at one of this package. And an error should name a
tensor by its path in the model. The tensor's module does not know that path, but mostly the model
is being called, and is found as the ``self`` of a frame.
"""

from __future__ import annotations

import sys
from types import FrameType

import torch
from torch import nn

from constrained.torch_internals.modules import submodules


def user_stacklevel() -> int:
    """The ``stacklevel`` with which the caller's warning points outside of this package."""
    level, frame = 1, sys._getframe(1)
    package = __name__.partition(".")[0]
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(
        (f"{package}.", "torch.nn.modules")
    ):
        level, frame = level + 1, frame.f_back
    return level


def path_in_running_model(parametrizations: nn.Module, name: str) -> str:
    """The path of a parametrized tensor in the outermost module that is being called.

    Args:
        parametrizations: the list of the tensor.
        name: its name in its own module, which is the result if no other module is being called.
    """
    # Under a compiler there are no frames.
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
        for path, module in submodules(model):
            if module is parametrizations and path:
                return path.replace("parametrizations.", "")
    return name
