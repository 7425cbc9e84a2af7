"""What is checked when parametrizations are registered, with torch's messages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor, nn

from constrained.evaluation.evaluated_tensor import EvaluatedTensor
from constrained.parametrized.evaluation_mode import without_side_effects
from constrained.parametrized.unsupported import check_not_sparsifying


def check_writable_now(original: Tensor) -> None:
    """Raise if a tensor was made in inference mode, and that mode is off now."""
    if original.is_inference() and not torch.is_inference_mode_enabled():
        raise ValueError(
            "the tensor was made in inference mode, so that it can be neither written nor trained; "
            "build the module outside of torch.inference_mode(), or constrain it inside."
        )


def check_trainable_through(original: Tensor, modules: Iterable[nn.Module]) -> None:
    """Raise if the parametrizations of a tensor hold tensors that were made in inference mode.

    No gradient can be computed through these. It is no error if the tensor itself was made so.
    """
    if original.is_inference():
        return
    for module in modules:
        for name, tensor in chain(module.named_parameters(), module.named_buffers()):
            if tensor.is_inference():
                raise ValueError(
                    f"'{name}' of {type(module).__name__} was made in inference mode, and nothing "
                    "that is computed from it can be trained; build the parametrization outside "
                    "of torch.inference_mode()."
                )


def check_original(original: Tensor, modules: Iterable[nn.Module]) -> None:
    """Raise unless a tensor can be written now, and trained through its parametrizations."""
    check_writable_now(original)
    check_trainable_through(original, modules)


def check_returned(new: Any) -> None:
    """Raise unless a right inverse returned a tensor or a sequence of tensors."""
    must = "'right_inverse' must return a Tensor or a Sequence of tensors (list, tuple...). "
    if not isinstance(new, (Tensor, Sequence)):
        raise ValueError(f"{must}Got {type(new).__name__}")
    elements = () if isinstance(new, Tensor) else cast("Sequence[Any]", new)
    for i, element in enumerate(elements):
        if not isinstance(element, Tensor):
            raise ValueError(
                f"{must}Got element {i} of the sequence with type {type(element).__name__}."
            )


def check_single(original: Tensor, new: Tensor) -> None:
    """Raise unless ``original`` can become ``new`` in place."""
    _check_equal(
        *(original, new, ("dtype", "device")),
        "When `right_inverse` outputs one tensor, it may not change the {0}.\n"
        "original.{0}: {1}\n"
        "right_inverse(original).{0}: {2}",
    )


def check_value(value: Any, original: Tensor) -> None:
    """Raise unless a value can replace ``original``."""
    if not isinstance(value, Tensor):
        raise ValueError(f"A parametrization must return a tensor. Got {type(value).__name__}.")
    _check_equal(
        *(original, value, ("dtype", "shape")),
        "Registering a parametrization may not change the {0} of the tensor, unless "
        "`unsafe` flag is enabled.\n"
        "unparametrized {0}: {1}\n"
        "parametrized {0}: {2}",
    )


def check_appended(name: str, value: Tensor, parametrization: nn.Module) -> None:
    """Raise unless a parametrization keeps the shape and dtype of a value, both ways.

    Args:
        name: of the tensor, for messages.
        value: the present value of the tensor.
        parametrization: to be added to those that the tensor has.

    Raises:
        ValueError: with the message that torch has for it.
    """
    result = parametrization(value)
    if not isinstance(result, Tensor):
        raise ValueError(f"A parametrization must return a tensor. Got {type(result).__name__}.")
    _check_equal(
        *(value, result, ("dtype", "shape")),
        "Registering a parametrization may not change the {0} of the tensor, unless the "
        "`unsafe` flag is enabled.\n"
        "module.{tensor}.{0}: {1}\n"
        "parametrization(module.{tensor}).{0}: {2}",
        tensor=name,
    )
    inverse = _right_inverse(parametrization, result, default=value)
    if not isinstance(inverse, Tensor):
        raise ValueError(
            f"parametrization.right_inverse must return a tensor. Got: {type(inverse).__name__}"
        )
    _check_equal(
        *(value, inverse, ("dtype", "shape")),
        "The tensor returned by parametrization.right_inverse must have the same {0} "
        "as module.{tensor}, unless the `unsafe` flag is enabled.\n"
        "module.{tensor}.{0}: {1}\n"
        "returned {0}: {2}",
        tensor=name,
    )


def check_can_follow(parametrizations: EvaluatedTensor, module: nn.Module) -> None:
    """Raise unless a parametrization can be applied after those in a list.

    Some, such as torch's ``orthogonal``, work only after their right inverse has been called. Then
    it is called on the present value, and may write into the parametrization. Nothing else is
    written.

    Args:
        parametrizations: the list of the others.
        module: the parametrization.

    Raises:
        ValueError: if it fails on the value, as it would at each read, or holds tensors that were
            made in inference mode.
        TypeError: if it is one of ``torch.ao.pruning``.
    """
    check_not_sparsifying(parametrizations, module)
    check_trainable_through(parametrizations.originals()[0], [module])
    with torch.no_grad(), without_side_effects(parametrizations, module):
        value = parametrizations()
        try:
            module(value)
        except TypeError as error:
            new = _right_inverse(module, value, default=None)
            count = len(cast("Sequence[Any]", new)) if isinstance(new, Sequence) else 1
            if count != 1:
                reason = (
                    f"it makes the value of {count} tensors, and those before it give one; "
                    "register it first, on the plain tensor, and the others after it."
                )
                raise _cannot_follow(parametrizations, module, reason) from error
            try:
                module(value)
            except TypeError as still:
                raise _cannot_follow(parametrizations, module, f"it fails: {still}") from still


def _right_inverse(module: nn.Module, value: Tensor, default: Any) -> Any:
    """What the right inverse of a module makes of a value, or ``default`` if it has none."""
    if not hasattr(module, "right_inverse"):
        return default
    inverse: Any = module.right_inverse
    try:
        return inverse(value)
    except NotImplementedError:
        return default


def _cannot_follow(parametrizations: EvaluatedTensor, module: nn.Module, reason: str) -> ValueError:
    before = " and ".join(type(m).__name__ for m in parametrizations.children())
    return ValueError(
        f"'{parametrizations.place()}' is parametrized by {before} already, and "
        f"{type(module).__name__} cannot come after that: {reason}"
    )


def _check_equal(
    old: Tensor, new: Tensor, names: Sequence[str], message: str, tensor: str = ""
) -> None:
    """Raise a ValueError unless two tensors agree in some attributes.

    Args:
        old: the tensor that says what is expected.
        new: the tensor that is checked.
        names: of the attributes.
        message: is formatted with the name, the value in ``old``, the value in ``new``, and
            ``tensor``.
        tensor: what the message calls the tensor.
    """
    for name in names:
        expected, got = getattr(old, name), getattr(new, name)
        if expected != got:
            raise ValueError(message.format(name, expected, got, tensor=tensor))
