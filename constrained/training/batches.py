"""Methods of a constraint on many tensors at once: small ones of one shape and set as one batch.

For a small tensor the calls take longer than the arithmetic, and one call does for all.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from constrained.atomic import sharded
from constrained.atomic.contents import store
from constrained.attached.attached_constraint import AttachedConstraint
from constrained.constraint.base import Constraint

#: Tensors of at most ``_SMALL`` entries are treated in batches of at most ``_BATCH`` entries.
_SMALL, _BATCH = 2**16, 2**22


def make_admissible(
    tensors: Sequence[AttachedConstraint],
    parameters: Sequence[torch.nn.Parameter],
    gradients: Sequence[Tensor],
) -> None:
    """Write the admissible part of each gradient into it.

    Args:
        tensors: what is known of the tensors.
        parameters: their parameters, which lie in their sets.
        gradients: the gradients of these, dense.
    """
    given = list(zip(parameters, gradients, strict=True))
    _write(tensors, _admissible, given, gradients)


def retract(
    tensors: Sequence[AttachedConstraint], parameters: Sequence[torch.nn.Parameter]
) -> None:
    """Bring parameters back into their sets.

    Args:
        tensors: what is known of the tensors.
        parameters: their parameters, near to their sets.
    """
    given = [(parameter,) for parameter in parameters]
    _write(tensors, _retracted, given, parameters)


def _admissible(constraint: Constraint, value: Tensor, gradient: Tensor) -> Tensor:
    return constraint.admissible(value, gradient)


def _retracted(constraint: Constraint, value: Tensor) -> Tensor:
    return constraint.retract(value)


def _write(
    tensors: Sequence[AttachedConstraint],
    function: Callable[..., Tensor],
    given: Sequence[Sequence[Tensor]],
    results: Sequence[Tensor],
) -> None:
    """Write what a function makes of a constraint and what is given for each tensor."""
    alike: dict[Hashable, list[int]] = {}
    for i, (tensor, (first, *_)) in enumerate(zip(tensors, given, strict=True)):
        key = tensor.batch_key()
        is_small = type(first) is torch.nn.Parameter and 0 < first.numel() <= _SMALL
        whole = (key, first.shape, first.dtype, first.device) if key and is_small else i
        alike.setdefault(whole, []).append(i)
    for indices in alike.values():
        constraint = tensors[indices[0]].constraint()
        most = max(1, _BATCH // max(1, results[indices[0]].numel()))
        for start in range(0, len(indices), most):
            some = indices[start : start + most]
            columns = list(zip(*(given[i] for i in some), strict=True))
            if len(some) == 1:
                found = [function(constraint, *(sharded.whole(c[0]) for c in columns))]
            else:
                found = function(constraint, *(torch.stack(c) for c in columns)).unbind()
            for i, new in zip(some, found, strict=True):
                if new is not results[i]:
                    store(results[i], new)
