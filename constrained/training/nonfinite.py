"""Gradients with NaN or infinity, and steps so long that they end there.

A gradient is checked before anything changes. Where an optimizer step ends is checked only with
``on_nonfinite="skip"``, which keeps a copy of the tensor to go back to. Otherwise it shows in the
next gradient, or when the tensor cannot be brought back into its set.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from constrained.atomic import sharded
from constrained.atomic.contents import is_finite, store
from constrained.attached.attached_constraint import AttachedConstraint
from constrained.constraint.errors import NonfiniteGradientError, OutOfRangeError
from constrained.torch_internals import linalg


def nonfinite_gradients(
    optimizer: Optimizer, tensors: Sequence[AttachedConstraint], parameters: Sequence[Tensor]
) -> list[int]:
    """Which of some gradients hold NaN or infinity, and are to be left out.

    Args:
        optimizer: the optimizer that is about to step.
        tensors: what is known of the tensors.
        parameters: their parameters, which have gradients.

    Raises:
        NonfiniteGradientError: if that of a tensor with ``on_nonfinite="raise"`` does.
        OutOfRangeError: if the tensor itself does.
    """
    if getattr(optimizer, "found_inf", None) is not None or not parameters:
        # A fused optimizer is given scaled gradients, and leaves the step out by itself.
        return []
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        return []
    gradients = [values_of(p) for p in parameters]
    if is_finite(torch.nn.utils.get_total_norm(gradients)):
        return []
    broken = [i for i, gradient in enumerate(gradients) if not is_finite(gradient)]
    for i in broken:
        tensor = tensors[i]
        if not is_finite(_local(parameters[i])):
            raise step_too_long(tensor, tensor.steps)
        if tensor.on_nonfinite == "raise":
            raise NonfiniteGradientError(
                f"'{tensor.path}': its gradient holds NaN or infinity at optimizer step "
                f"{tensor.steps + 1}, and nothing has been changed; look for the loss that "
                "became so, or constrain it with on_nonfinite='skip', which leaves such steps out."
            )
    return broken


def step_too_long(tensor: AttachedConstraint, step: int) -> OutOfRangeError:
    """The error for a tensor that a step has made NaN or infinite."""
    return OutOfRangeError(
        f"'{tensor.path}': it holds NaN or infinity after optimizer step {step}; load the last "
        "checkpoint and make shorter steps, or constrain it with on_nonfinite='skip', which goes "
        "back to where such a step began."
    )


def go_back(optimizer: Optimizer, parameter: Tensor, before: Tensor) -> None:
    """Leave out a step that has ended in NaN or infinity.

    What the optimizer remembers of the tensor is forgotten if it is NaN or infinite too.
    """
    store(parameter, before)
    state: dict[str, Any] = optimizer.state.get(parameter, {})
    tensors: list[Tensor] = [value for value in state.values() if isinstance(value, Tensor)]
    if not all(map(is_finite, tensors)):
        del optimizer.state[parameter]


def is_finite_point(parameter: Tensor) -> bool:
    """Whether a parameter holds neither NaN nor infinity."""
    local = _local(parameter)
    return is_finite(linalg.vector_norm(local)) or is_finite(local)


def values_of(parameter: Tensor) -> Tensor:
    """The entries of a gradient that this process has, those of the rows that it has if sparse."""
    gradient: Any = parameter.grad
    if gradient.layout is torch.sparse_coo:
        gradient = gradient.coalesce().values()
    return _local(gradient)


def _local(tensor: Any) -> Tensor:
    return tensor.detach().to_local() if sharded.is_shard(tensor) else tensor.detach()
