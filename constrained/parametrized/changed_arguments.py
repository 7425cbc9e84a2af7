"""Whether the originals that a tensor is stored as go with the arguments of its constraint."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from constrained.constraint.base import Constraint
from constrained.evaluation.evaluated_tensor import EvaluatedTensor
from constrained.torch_internals.shards import is_flat


def check_fit(on: EvaluatedTensor, index: int, doing: str = "change this argument") -> None:
    """Raise unless a constraint is given tensors of the shapes that its right inverse makes.

    The factors of another rank would be mapped to something, too.

    Args:
        on: the parametrized tensor.
        index: the place of the constraint in the chain.
        doing: what has been done to it, for the message.

    Raises:
        ValueError: with the shapes, and what to do.
    """
    constraint: Any = on.chain()[index]
    originals = on.originals()
    if not isinstance(constraint, Constraint) or on.unsafe or any(map(is_flat, originals)):
        return
    shapes = [(*t.shape,) for t in originals] if index == 0 else [(*on.shape,)]
    try:
        # What is made of parts is checked as a whole.
        type(constraint)(**constraint.arguments())
        needed = [(*t.shape,) for t in _inverted(constraint, on.shape, originals[0])]
    except (ValueError, TypeError) as error:
        reason = f" ({str(error).rstrip('.')})"
        raise _refusal(on, constraint, shapes, reason, doing) from error
    if needed != shapes:
        raise _refusal(on, constraint, shapes, f", and is made of {_listed(needed)}", doing)


def check_constants(on: EvaluatedTensor, doing: str) -> None:
    """Raise unless those originals are trained of which the first constraint has a gradient.

    A free parameter and its base point may have the shapes of two factors, but one is a constant.

    Args:
        on: the parametrized tensor.
        doing: what has been done to it, for the message.

    Raises:
        ValueError: with the number of the original, and what to do.
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
            raise _refusal(on, constraint, shapes, reason, doing)


def _inverted(constraint: Constraint, shape: torch.Size, like: Tensor) -> tuple[Tensor, ...]:
    """What the right inverse makes of a value: of its shape alone where that is possible."""
    own = next(chain(constraint.parameters(), constraint.buffers()), None)
    with torch.no_grad():
        if own is None or like.is_meta:
            value = constraint.start(torch.zeros(shape, dtype=like.dtype, device="meta"))
        else:
            # With numbers it takes a member: zeros may have no nearest one.
            generator = torch.Generator(like.device).manual_seed(0)
            value = constraint.sample(
                shape, generator=generator, dtype=like.dtype, device=like.device
            )
        found = constraint.right_inverse(value)
    return (found,) if isinstance(found, Tensor) else tuple(found)


def _refusal(
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
