"""What training with any library must do to constrained tensors: move them inside their sets."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from constrained import assert_feasible, violations
from constrained.parametrized.tensor_locations import constrained_tensors


def values(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of the constrained tensors by their paths."""
    found = {path: holder for path, holder, _ in constrained_tensors(model)}
    return {path: holder().detach().clone() for path, holder in found.items()}


@contextmanager
def trains(model: nn.Module) -> Iterator[None]:
    """Check that every constrained tensor moves inside of the block, and ends in its set."""
    before = values(model)
    assert before
    yield
    after = values(model)
    assert after.keys() == before.keys()
    for path, value in after.items():
        assert torch.isfinite(value).all(), path
        assert not torch.allclose(value, before[path], rtol=0, atol=1e-6), path
    assert_feasible(model)
    assert violations(model).keys() == before.keys()


def same(model: nn.Module, other: nn.Module, tolerance: float = 0.0) -> None:
    """Check that two models have the same constrained tensors.

    Bit by bit what was copied or loaded; what has been trained since up to rounding, since a value
    may be had in several ways.
    """
    mine, theirs = values(model), values(other)
    assert mine.keys() == theirs.keys()
    for path, value in mine.items():
        torch.testing.assert_close(value, theirs[path], rtol=tolerance, atol=tolerance)
