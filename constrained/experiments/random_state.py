"""The global random numbers of an experiment, which leave those of the program as they are."""

from __future__ import annotations

import random
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor


class _States(NamedTuple):
    torch: Tensor
    cuda: list[Tensor] | None
    python: Any
    numpy: Any


class RandomState:
    """A stream of the global random numbers of torch, numpy and Python, which is entered and left.

    Inside of ``with stream.entered():`` they go on where the stream was left; after it they are
    what they were before.

    Args:
        seed: where the stream begins.
    """

    def __init__(self, seed: int) -> None:
        outside = _now()
        torch.manual_seed(seed)
        random.seed(seed)
        numpy.random.seed(seed)
        self._states = _now()
        _set(outside)

    @contextmanager
    def entered(self) -> Generator[None]:
        """Draw from the stream."""
        outside = _now()
        _set(self._states)
        try:
            yield
        finally:
            self._states = _now()
            _set(outside)


def _now() -> _States:
    started = torch.cuda.is_available() and torch.cuda.is_initialized()
    cuda = torch.cuda.get_rng_state_all() if started else None
    return _States(torch.get_rng_state(), cuda, random.getstate(), numpy.random.get_state())


def _set(states: _States) -> None:
    torch.set_rng_state(states.torch)
    if states.cuda is not None:
        torch.cuda.set_rng_state_all(states.cuda)
    random.setstate(states.python)
    numpy.random.set_state(states.numpy)
