"""Whether originals still match a constraint after it, or one of its arguments, was replaced.

The originals of a tensor were made for its constraint: their number and their shapes follow from
the arguments. If the rank changes, for example, the old factors still give a value, but not one of
the new rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from constrained.constraint.arguments import check_when_set
from constrained.constraint.base import Constraint
from constrained.constraint.elements import unpack
from constrained.evaluation.evaluated_tensor import EvaluatedTensor
from constrained.parametrized.originals_index import indexed_lists
from constrained.torch_internals.shards import is_flat


@check_when_set
def _check_tensors_of(changed: nn.Module) -> None:
    """Raise if the originals of any tensor do not match the argument that was set."""
    for found in indexed_lists():
        for i, module in enumerate(found.chain()):
            if module is changed or any(m is changed for m in module.modules()):
                check_original_shapes(found, i)


def check_replaced(on: EvaluatedTensor, index: int) -> None:
    """Raise a ValueError unless the originals match a constraint that has been put into a chain."""
    doing = "put this one there"
    check_original_shapes(on, index, doing)
    if index == 0:
        check_frozen_originals(on, doing)


def check_original_shapes(
    on: EvaluatedTensor, index: int, doing: str = "change this argument"
) -> None:
    """Raise unless a constraint gets tensors of the shapes that its right inverse makes.

    Args:
        on: the parametrized tensor.
        index: the position of the constraint in the chain.
        doing: what has been done to the constraint, for the message.

    Raises:
        ValueError: names the shapes, and what to do.
    """
    constraint: Any = on.chain()[index]
    originals = on.originals()
    if not isinstance(constraint, Constraint) or on.unsafe or any(map(is_flat, originals)):
        return
    shapes = [(*t.shape,) for t in originals] if index == 0 else [(*on.shape,)]
    try:
        # A constraint that consists of others checks its arguments as a whole.
        type(constraint)(**constraint.arguments())
        needed = [(*t.shape,) for t in _originals_of(constraint, on.shape, originals[0])]
    except (ValueError, TypeError) as error:
        reason = f" ({str(error).rstrip('.')})"
        raise _mismatch(on, constraint, shapes, reason, doing) from error
    if needed != shapes:
        raise _mismatch(on, constraint, shapes, f", and is made of {_listed(needed)}", doing)


def check_frozen_originals(on: EvaluatedTensor, doing: str) -> None:
    """Raise unless the first constraint takes the trained originals for trained parameters.

    For example, two factors may have the shapes of a free parameter and its base point. But a base
    point is a constant, and both factors are trained.

    Args:
        on: the parametrized tensor.
        doing: what has been done to the constraint, for the message.

    Raises:
        ValueError: names the original by its number, and what to do.
    """
    constraint = on.chain()[0]
    if not isinstance(constraint, Constraint) or on.unsafe or not on.is_parameter:
        return
    shapes = [(*t.shape,) for t in on.originals()]
    for i, name in enumerate(on.names()):
        is_constant = i in constraint.frozen
        if name in (on._parameters if is_constant else on._buffers):
            kind = "a constant" if is_constant else "trained"
            reason = f", of which number {i} is {kind} under it, and is not here"
            raise _mismatch(on, constraint, shapes, reason, doing)


def _originals_of(constraint: Constraint, shape: torch.Size, like: Tensor) -> tuple[Tensor, ...]:
    """What the right inverse makes of a value of this shape."""
    own = next(chain(constraint.parameters(), constraint.buffers()), None)
    with torch.no_grad():
        if own is None or like.is_meta:
            # On the meta device only shapes are computed.
            value = constraint.start(torch.zeros(shape, dtype=like.dtype, device="meta"))
        else:
            # The constraint has tensors with numbers, so the value must have numbers. It is a
            # sample, since zeros may have no nearest member.
            generator = torch.Generator(like.device).manual_seed(0)
            value = constraint.sample(
                shape, generator=generator, dtype=like.dtype, device=like.device
            )
        return unpack(constraint.right_inverse(value))


def _mismatch(
    on: EvaluatedTensor,
    constraint: Constraint,
    shapes: Sequence[tuple[int, ...]],
    reason: str,
    doing: str,
) -> ValueError:
    return ValueError(
        f"{constraint!r} does not go with the free parameters that '{on.place()}' is stored as, "
        f"of shape {_listed(shapes)}{reason}; to {doing}, release() the tensor and constrain() it "
        "anew."
    )


def _listed(shapes: Sequence[tuple[int, ...]]) -> str:
    return " and ".join(map(str, shapes))
