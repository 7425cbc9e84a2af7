"""From the value of a parametrized tensor back to its originals, with checks."""

from __future__ import annotations

import dis
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from constrained.atomic import sharded
from constrained.atomic.contents import is_finite
from constrained.constraint.base import Constraint
from constrained.constraint.elements import unpack
from constrained.constraint.errors import InfeasibleError
from constrained.evaluation.evaluated_tensor import EvaluatedTensor
from constrained.parametrized.assignment import check_assigned, check_dtype
from constrained.parametrized.consistency_checks import check_returned, check_single, check_value
from constrained.torch_internals.shards import is_managed


def _run_backwards(on: EvaluatedTensor, value: Tensor, *, initial: bool = False) -> Any:
    """Apply the right inverses of the chain to a value, from the last to the first.

    Args:
        on: the parametrized tensor.
        value: of the shape of the parametrized tensor.
        initial: whether the chain is being registered. As in torch, a module without a right
            inverse then starts with the tensor as it is.
    """
    chain = on.chain()
    new: Any = value
    for module in reversed(chain):
        if not hasattr(module, "right_inverse"):
            if initial:
                continue
            raise RuntimeError(
                f"parametrization {type(module).__name__} does not implement right_inverse."
            )
        inverse: Any = module.right_inverse
        try:
            new = inverse(new)
        except NotImplementedError as error:
            is_optional = initial and not isinstance(module, Constraint)
            if not is_optional or not _was_raised_on_purpose(error):
                raise
        except InfeasibleError as error:
            if initial or module is chain[-1]:
                raise
            raise InfeasibleError(
                f"{error} It is an element of the chain {on.described()}, which finds only values "
                "whose right inverse under each element lies in the set of the one before it."
            ) from error
    return new


def _was_raised_on_purpose(error: BaseException) -> bool:
    """Whether a ``raise`` statement made the error, not a kernel that lacks a dtype."""
    traceback = error.__traceback__
    if traceback is None:
        return True
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    opcode = traceback.tb_frame.f_code.co_code[traceback.tb_lasti]
    return dis.opname[opcode] == "RAISE_VARARGS"


def new_originals(
    on: EvaluatedTensor, value: Tensor, original: Tensor | None = None
) -> Tensor | Sequence[Tensor]:
    """Originals whose value is ``value``, to be registered as new tensors.

    With X = value, Y = right_inverse(X) and Z = forward(Y) or forward(*Y), this checks that Y is a
    tensor or a sequence of tensors, and Z a tensor of the dtype and shape of X. With
    ``unsafe`` nothing is evaluated.

    Args:
        on: the parametrized tensor.
        value: of its shape.
        original: the plain tensor, if it is being parametrized only now. A single tensor Y must
            have its dtype and device, because Y is written into it: it must stay the same object,
            which an optimizer may hold.

    Raises:
        ValueError: if what the parametrizations return cannot be used.
    """
    with torch.no_grad():
        new = _run_backwards(on, value, initial=original is not None)
    check_returned(new)
    if original is not None and isinstance(new, Tensor):
        check_single(original, new)
    check_finite(on, value, unpack(new))
    if not on.unsafe:
        result = on.evaluator()(*unpack(new))
        check_value(result, value)
        check_finite(on, value, (result,))
    return new


def invert(on: EvaluatedTensor, value: Tensor, *, replace: bool = False) -> tuple[Tensor, ...]:
    """Originals whose value is ``value``, to be written into the present ones.

    Args:
        on: the parametrized tensor.
        value: of the shape of the parametrized tensor.
        replace: whether they replace the present ones, so that dtype and device may differ.

    Raises:
        RuntimeError: if a parametrization has no right inverse.
        ValueError: if the value cannot be assigned, or what it is mapped to cannot be stored.
    """
    check_assigned(on, value, replace=replace)
    known = on.originals()
    new: Any = _run_backwards(on, value.detach())
    if on.is_tensor:
        if not isinstance(new, Tensor):
            raise ValueError(f"`right_inverse` should return a tensor. Got {type(new).__name__}")
        if not replace and new.dtype != known[0].dtype:
            check_dtype(on, value)
            raise ValueError(
                f"The tensor returned by `right_inverse` has dtype {new.dtype} "
                f"while `original` has dtype {known[0].dtype}"
            )
        new = (new,)
    if not isinstance(new, Sequence):
        raise ValueError(
            f"'right_inverse' must return a sequence of tensors. Got {type(new).__name__}."
        )
    elements = cast("Sequence[Any]", new)
    if len(elements) != on.ntensors:
        raise ValueError(
            "'right_inverse' must return a sequence of tensors of length "
            f"{on.ntensors}. Got a sequence of length {len(elements)}."
        )
    for i, (old, tensor) in enumerate(zip(known, elements, strict=True)):
        if not isinstance(tensor, Tensor):
            raise ValueError(
                "'right_inverse' must return a sequence of tensors. "
                f"Got element {i} of type {type(tensor).__name__}."
            )
        if not replace and old.dtype != tensor.dtype:
            check_dtype(on, value)
            raise ValueError(
                f"Tensor {i} returned by `right_inverse` has dtype {tensor.dtype} "
                f"while `original{i}` has dtype {old.dtype}"
            )
    check_finite(on, value, elements)
    if is_managed(on):
        sharded.check_writable(known, elements)
    return tuple(elements)


def check_finite(on: EvaluatedTensor, value: Tensor, new: Sequence[Tensor]) -> None:
    """Raise if a finite value has led to tensors that are not finite, unless ``unsafe``."""
    if on.unsafe or not is_finite(value):
        return
    for tensor in new:
        if not is_finite(tensor):
            raise ValueError(
                f"{on.described()} makes NaN or infinite numbers of a finite tensor, which "
                "lies outside of its domain, or has no right_inverse that leads back to it."
            )
