"""Events after which people write into tensors: backward passes, and steps of optimizers."""

from __future__ import annotations

import itertools

import torch

_is_recording = torch.is_grad_enabled


_numbers = itertools.count(1)


class Events:
    """How many things have happened that writes follow, in any thread."""

    count = 0


def expect_writes() -> None:
    """Say that something has happened after which people write into tensors.

    A backward pass and a step of an optimizer are such: hand-written steps, clipping and copies of
    master weights follow them. They go through ``tensor.data`` as often as not, which no version
    counter sees.
    """
    Events.count = next(_numbers)


def happened() -> int:
    """How many such events there were."""
    return Events.count


def moment() -> int:
    """A number that is another one after each event, and where gradients are recorded or not."""
    # Writes are made where gradients are off, and what reads next records them, or the reverse.
    return 2 * Events.count + _is_recording()
