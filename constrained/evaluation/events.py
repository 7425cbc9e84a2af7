"""Events after which people write into tensors: backward passes, and steps of optimizers.

Hand-written steps, clipping and copies of master weights follow them, and go through
``tensor.data`` as often as not. No version counter sees such a write, so the contents of a large
tensor are compared once after each event: see `constrained.evaluation.tensor_state`.
"""

from __future__ import annotations

import itertools

import torch

_is_recording = torch.is_grad_enabled

_numbers = itertools.count(1)


class Events:
    """How many of these events there were, in any thread."""

    count = 0


def expect_writes() -> None:
    """Count an event after which people write into tensors."""
    Events.count = next(_numbers)


def moment() -> int:
    """A number that changes with each event, and when recording of gradients is switched.

    Writes are made where gradients are not recorded, and the next read records them, or the
    reverse.
    """
    return 2 * Events.count + _is_recording()
