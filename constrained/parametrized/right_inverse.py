"""How a value that is assigned becomes the originals of a parametrized tensor, checked."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad as fwAD

from constrained.atomic import sharded
from constrained.atomic.contents import is_finite
from constrained.constraint.errors import InfeasibleError, OutOfRangeError
from constrained.evaluation.evaluated_tensor import EvaluatedTensor
from constrained.parametrized.call_stack import frames_to_the_caller, path_for_the_caller
from constrained.registration.wrappers import is_sharded


def check_assigned(on: EvaluatedTensor, value: Tensor, *, anew: bool = False) -> None:
    """Raise unless a tensor of this type, shape and device can be assigned."""
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
    if value.device != device and not anew:
        raise ValueError(
            f"A tensor on {value.device} was assigned to a parametrized tensor on {device}."
        )


def raise_named(on: nn.Module, name: str, error: ValueError | TypeError) -> NoReturn:
    """Raise the error of an assignment, its sentence led by the path of the tensor."""
    if type(error) not in (ValueError, TypeError, InfeasibleError, OutOfRangeError):
        # Somebody else's, of which nobody knows how it is made.
        raise error
    path = name if "." in name else path_for_the_caller(on, name)
    raise type(error)(f"'{path}': {error}") from error


def warn_of_graph(on: EvaluatedTensor, value: Any) -> None:
    """Warn if the numbers of a tensor are assigned that somebody may want to train through."""
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
        # A compiler has no frames.
        stacklevel=1 if torch.compiler.is_compiling() else frames_to_the_caller(),
    )


def _has_derivative(value: Tensor) -> bool:
    if fwAD.unpack_dual(value).tangent is not None:
        return True
    return torch.is_grad_enabled() and value.requires_grad and not value.is_leaf


def expanded(on: EvaluatedTensor, value: Any) -> Any:
    """What is assigned, where a plain parameter would take it: a number, or what broadcasts.

    ``parameter.data.copy_(value)`` and ``fill_`` take these, and so GPyTorch's ``initialize`` does,
    as for ``kernel.lengthscale = 0.9``; and so they do tensors of another dtype, which are taken
    here where nothing is rounded. What does not broadcast comes back as it is.
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


def invert(on: EvaluatedTensor, value: Tensor, *, anew: bool = False) -> tuple[Tensor, ...]:
    """The originals whose value is ``value``, checked and not yet stored.

    Args:
        on: the parametrized tensor.
        value: of the shape of the parametrized tensor.
        anew: the originals are to take the place of those here, which may be of another dtype
            or on another device.
    """
    check_assigned(on, value, anew=anew)
    known = on.originals()
    new: Any = value.detach()
    for module in reversed(on.chain()):
        if not hasattr(module, "right_inverse"):
            raise RuntimeError(
                f"parametrization {type(module).__name__} does not implement right_inverse."
            )
        inverse: Any = module.right_inverse
        try:
            new = inverse(new)
        except InfeasibleError as error:
            if module is on.chain()[-1]:
                raise
            raise InfeasibleError(
                f"{error} It is an element of the chain {on.described()}, which finds only values "
                "whose right inverse under each element lies in the set of the one before it."
            ) from error
    if on.is_tensor:
        if not isinstance(new, Tensor):
            raise ValueError(f"`right_inverse` should return a tensor. Got {type(new).__name__}")
        if not anew and new.dtype != known[0].dtype:
            _check_dtype(on, value)
            raise ValueError(
                f"The tensor returned by `right_inverse` has dtype {new.dtype} "
                f"while `original` has dtype {known[0].dtype}"
            )
        new = (new,)
    if not isinstance(new, Sequence):
        raise ValueError(
            f"'right_inverse' must return a sequence of tensors. Got {type(new).__name__}."
        )
    if len(new) != on.ntensors:
        raise ValueError(
            "'right_inverse' must return a sequence of tensors of length "
            f"{on.ntensors}. Got a sequence of length {len(new)}."
        )
    for i, (old, tensor) in enumerate(zip(known, new, strict=True)):
        if not isinstance(tensor, Tensor):
            raise ValueError(
                "'right_inverse' must return a sequence of tensors. "
                f"Got element {i} of type {type(tensor).__name__}."
            )
        if not anew and old.dtype != tensor.dtype:
            _check_dtype(on, value)
            raise ValueError(
                f"Tensor {i} returned by `right_inverse` has dtype {tensor.dtype} "
                f"while `original{i}` has dtype {old.dtype}"
            )
    check_finite(on, value, new)
    if is_sharded(on):  # type: ignore[arg-type]
        sharded.check_writable(known, new)
    return tuple(new)


def _check_dtype(on: EvaluatedTensor, value: Tensor) -> None:
    """Raise if what was assigned has a dtype that would be rounded."""
    dtype = on.originals()[0].dtype
    if value.dtype != dtype:
        raise ValueError(
            f"A tensor of dtype {value.dtype} was assigned to a parametrized tensor of dtype "
            f"{dtype}, which would round it: assign value.to({dtype})."
        )


def check_finite(on: EvaluatedTensor, value: Tensor, new: Sequence[Tensor]) -> None:
    """Raise if what was made of a finite value is not finite, unless ``unsafe``."""
    if on.unsafe or not is_finite(value):
        return
    for tensor in new:
        if not is_finite(tensor):
            raise ValueError(
                f"{on.described()} makes NaN or infinite numbers of a finite tensor, which "
                "lies outside of its domain, or has no right_inverse that leads back to it."
            )
