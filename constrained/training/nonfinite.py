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

#: What `gradient_faults` finds: nothing, NaN or infinity in the gradient, or in the tensor too.
_FINE, _GRADIENT, _TENSOR = 0, 1, 2


def gradient_faults(optimizer: Optimizer, parameters: Sequence[Tensor]) -> list[int]:
    """What is wrong with the gradient of each parameter, as far as this process has it.

    Args:
        optimizer: the optimizer that is about to step.
        parameters: the parameters, with or without gradients.
    """
    nothing = [_FINE] * len(parameters)
    if getattr(optimizer, "found_inf", None) is not None:
        # A fused optimizer is given scaled gradients, and leaves the step out by itself.
        return nothing
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        return nothing
    gradients = [values_of(p) for p in parameters if p.grad is not None]
    if not gradients or is_finite(torch.nn.utils.get_total_norm(gradients)):
        return nothing
    return [_fault(parameter) for parameter in parameters]


def _fault(parameter: Tensor) -> int:
    if parameter.grad is None or is_finite(values_of(parameter)):
        return _FINE
    return _GRADIENT if is_finite(_local(parameter)) else _TENSOR


def left_out(tensors: Sequence[AttachedConstraint], faults: Sequence[int]) -> list[int]:
    """The indices of those tensors that a step is to leave out.

    Args:
        tensors: what is known of the tensors.
        faults: those of their gradients; see `gradient_faults`.

    Raises:
        NonfiniteGradientError: if there is a fault of one with ``on_nonfinite="raise"``.
        OutOfRangeError: if the tensor itself holds NaN or infinity.
    """
    broken = [i for i, fault in enumerate(faults) if fault]
    for i in broken:
        tensor = tensors[i]
        if faults[i] == _TENSOR:
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


def step_fault(optimizer: Optimizer, parameter: Tensor) -> int:
    """What is wrong with where a step has ended, as far as this process has it.

    Returns:
        0 if nothing, 1 if the parameter is not finite, 2 if what the optimizer remembers of it is
        not either.
    """
    if is_finite_point(parameter):
        return 0
    state: dict[str, Any] = optimizer.state.get(parameter, {})
    tensors = [_local(value) for value in state.values() if isinstance(value, Tensor)]
    return 1 if all(map(is_finite, tensors)) else 2


def go_back(optimizer: Optimizer, parameter: Tensor, before: Tensor, fault: int) -> None:
    """Leave out a step that has ended in NaN or infinity.

    Args:
        optimizer: the optimizer.
        parameter: one of its parameters.
        before: where the step began.
        fault: the `step_fault`. What the optimizer remembers is forgotten if that is not finite.
    """
    store(parameter, before)
    if fault > 1:
        optimizer.state.pop(parameter, None)


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
