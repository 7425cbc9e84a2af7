"""What can be assigned to a parametrized tensor, and the errors and warnings of an assignment."""

from __future__ import annotations

import warnings
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad as fwAD

from constrained.atomic.interrupts import defer_interrupts
from constrained.atomic.undo import all_or_nothing, tensors_of
from constrained.constraint.errors import InfeasibleError, OutOfRangeError
from constrained.constraint.tolerance import working_dtype
from constrained.evaluation.evaluated_tensor import EvaluatedTensor
from constrained.parametrized.call_stack import path_in_running_model, user_stacklevel
from constrained.parametrized.evaluation_mode import without_side_effects
from constrained.parametrized.parametrizations import inherited
from constrained.parametrized.unsupported import CURE
from constrained.torch_internals import linalg
from constrained.torch_internals.tensors import has_values, is_wrapper


def check_assigned(on: EvaluatedTensor, value: Any, *, replace: bool = False) -> None:
    """Raise unless a value is a tensor of a shape and device that can be assigned.

    Args:
        on: the parametrized tensor.
        value: what is assigned.
        replace: the originals are replaced, so that the device may be another one.
    """
    if not isinstance(value, Tensor):
        raise TypeError(
            f"A parametrized tensor can be assigned a tensor only, got {type(value).__name__}."
        )
    if not on.unsafe and value.shape != on.shape:
        raise ValueError(
            f"A tensor of shape {tuple(value.shape)} was assigned to a parametrized tensor of "
            f"shape {tuple(on.shape)}: to give it another shape, release it first."
        )
    device = on.originals()[0].device
    if value.device != device and not replace:
        raise ValueError(
            f"A tensor on {value.device} was assigned to a parametrized tensor on {device}."
        )


def check_dtype(on: EvaluatedTensor, value: Tensor) -> None:
    """Raise if an assigned tensor has another dtype, so that its numbers would be rounded."""
    dtype = on.originals()[0].dtype
    if value.dtype != dtype:
        raise ValueError(
            f"A tensor of dtype {value.dtype} was assigned to a parametrized tensor of dtype "
            f"{dtype}, which would round it: assign value.to({dtype})."
        )


def expanded(on: EvaluatedTensor, value: Any) -> Any:
    """What is assigned, expanded as ``parameter.data.copy_(value)`` and ``fill_`` would do it.

    Those methods take a number, or a tensor that broadcasts. GPyTorch's ``initialize`` relies on
    that, as in ``kernel.lengthscale = 0.9``. They also take other dtypes; this takes those that
    need no rounding. What does not broadcast is returned as it is.
    """
    original = on.originals()[0]
    if isinstance(value, (int, float)):
        value = torch.as_tensor(value, dtype=original.dtype, device=original.device)
    if not isinstance(value, Tensor) or on.unsafe:
        return value
    if all(torch.promote_types(value.dtype, t.dtype) == t.dtype for t in on.originals()):
        exact = value.to(original.dtype)
        # A whole number is promoted to a floating-point one that may have fewer digits.
        if value.is_floating_point() or torch.equal(exact.to(value.dtype), value):
            value = exact
    if value.shape == on.shape:
        return value
    if value.numel() == 1:
        value = value.reshape(())
    try:
        return value.expand(on.shape).contiguous()
    except RuntimeError:
        return value


def raise_named(on: nn.Module, name: str, error: ValueError | TypeError) -> NoReturn:
    """Raise the error of an assignment with the path of the tensor in front of its message."""
    if type(error) not in (ValueError, TypeError, InfeasibleError, OutOfRangeError):
        # How an error of another class is constructed is unknown.
        raise error
    path = name if "." in name else path_in_running_model(on, name)
    raise type(error)(f"'{path}': {error}") from error


def warn_of_graph(on: EvaluatedTensor, value: Any) -> None:
    """Warn if an assigned tensor has a graph: only its numbers are taken."""
    if not isinstance(value, Tensor) or not _has_derivative(value):
        return
    name = on.place()
    warnings.warn(
        f"'{name}' is computed by {on.described()}, and was assigned a tensor with a graph, of "
        "which it takes the numbers only: no gradient will flow to what that was computed from. To "
        "train through it, call torch.func.functional_call(module, "
        f"{{'{name}': value}}, inputs), or release '{name}'; if the numbers are meant, assign "
        "value.detach().",
        UserWarning,
        # Under a compiler there are no frames.
        stacklevel=1 if torch.compiler.is_compiling() else user_stacklevel(),
    )


def _has_derivative(value: Tensor) -> bool:
    if fwAD.unpack_dual(value).tangent is not None:
        return True
    return torch.is_grad_enabled() and value.requires_grad and not value.is_leaf


def assign_parameter(module: Any, name: str, value: Tensor) -> None:
    """Assign an ``nn.Parameter``, as tools do which suppose that the tensor is a plain one.

    For example, torch's fusion of layers does, and would not notice that the tensor has got another
    value.

    Raises:
        ValueError: if the tensor cannot have the value. It is then as it was.
    """
    if module._overrides is not None:
        # The assignment goes to what overrides the tensor, as inside of functional_call.
        inherited(module).__setattr__(name, value)
        return
    parametrizations = module.parametrizations[name]
    changed = list(parametrizations.modules())
    advice = f" A tool that rewrites weights works on {CURE}, a copy without constraints."
    if is_wrapper(value) and type(value) is not type(parametrizations.originals()[0]):
        raise TypeError(
            f"'{name}' is computed by parametrizations, of tensors with plain numbers, and was "
            f"assigned a {type(value).__name__}.{advice}"
        )
    with defer_interrupts(), all_or_nothing(changed, tensors_of(changed)):
        try:
            inherited(module).__setattr__(name, value)
        except InfeasibleError as error:
            raise InfeasibleError(f"{error}{advice}") from error
        if not has_values(value):
            return
        with torch.no_grad(), without_side_effects(parametrizations):
            if _is_close(getattr(module, name), value):
                return
        raise ValueError(
            f"'{name}' was assigned a parameter that is not a value of its parametrizations: they "
            f"make another one of it.{advice}"
        )


def _is_close(value: Tensor, expected: Tensor) -> bool:
    """Whether two tensors are the same, up to rounding errors of a right inverse and its map."""
    if not (expected.is_floating_point() or expected.is_complex()):
        return torch.equal(value, expected)
    if value.shape != expected.shape:
        return False
    precise = working_dtype(expected.dtype)
    distance = linalg.vector_norm(value.to(precise) - expected.to(precise))
    size = linalg.vector_norm(expected.to(precise))
    return bool(distance <= 4 * torch.finfo(expected.dtype).eps ** 0.5 * size)
