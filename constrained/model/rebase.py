"""`rebase`: choose new free parameters for constrained tensors, which keep their values."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from constrained.atomic.interrupts import allow_interrupt, defer_interrupts
from constrained.atomic.undo import all_or_nothing, tensors_of
from constrained.model.error_messages import with_path
from constrained.parametrized.parametrization_list import read
from constrained.parametrized.tensor_locations import constrained_lists

M = TypeVar("M", bound=nn.Module)


def rebase(model: M) -> M:
    """Choose new free parameters for every constrained tensor, which keeps its value.

    They become what the constraint's right inverse gives for the value, where its map is best
    conditioned: the base point of a chart moves to the value, factors are balanced, rounding errors
    are removed.

    This happens once, when it is called. Constraints with the argument ``map="rebased"``, such as
    ``orthogonal``, do it by themselves after each optimizer step.

    Args:
        model: the model.

    Returns:
        ``model``, of the type that it has.

    Raises:
        ValueError: if a tensor holds NaN or infinite values. The model is then as it was.

    Example:
        >>> import torch, constrained
        >>> layer = constrained.constrain(torch.nn.Linear(4, 4), "weight", "orthogonal(map='exp')")
        >>> before = layer.weight.detach().clone()
        >>> torch.allclose(constrained.rebase(layer).weight, before, atol=1e-6)
        True
    """
    found = list(constrained_lists(model))
    changed = [module for _, parametrizations in found for module in parametrizations.modules()]
    with defer_interrupts(), all_or_nothing(changed, tensors_of(changed)), torch.no_grad():
        for path, parametrizations in found:
            allow_interrupt()
            value = read(parametrizations, path)
            try:
                parametrizations.right_inverse(value)
            except (ValueError, TypeError) as error:
                raise with_path(path, error) from error.__cause__
    return model
