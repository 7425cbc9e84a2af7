"""The precision in which constraints compute: at least single, with autocast off."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from constrained.constraint.tolerance import working_dtype


def is_autocast(value: Tensor) -> bool:
    """Whether autocast is on for the device of ``value``. The meta device has none."""
    device = value.device.type
    return device != "meta" and torch.is_autocast_enabled(device)


def autocast_disabled(value: Tensor) -> AbstractContextManager[Any]:
    """A context with autocast off for the device of ``value``; it costs nothing if that is off."""
    if is_autocast(value):
        return torch.autocast(value.device.type, enabled=False)
    return nullcontext()


def raise_precision(value: Tensor) -> Tensor:
    """The tensor in the dtype in which a constraint on it computes."""
    return value.to(working_dtype(value.dtype))
