"""What a parametrization must be to come after others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from constrained.parametrized.consistency_checks import check_records
from constrained.parametrized.evaluation_mode import without_side_effects


def prepare(parametrizations: Any, module: nn.Module) -> None:
    """See to it that a parametrization can take the value of those that are to come before it.

    One that is ready only once its right inverse has been shown a value, such as torch's
    ``orthogonal``, is shown the present one. Nothing is written but what it does then.

    Args:
        parametrizations: the list of the others.
        module: the parametrization.

    Raises:
        ValueError: if it fails on the value, as it would at each read, or holds tensors that were
            made in inference mode.
    """
    check_records(parametrizations.originals()[0], [module])
    with torch.no_grad(), without_side_effects(parametrizations, module):
        value = parametrizations()
        try:
            module(value)
        except TypeError as error:
            new = _shown(module, value)
            if isinstance(new, Sequence) and len(new) != 1:
                reason = (
                    f"it makes the value of {len(new)} tensors, and those before it give one; "
                    "register it first, on the plain tensor, and the others after it."
                )
                raise _refusal(parametrizations, module, reason) from error
            try:
                module(value)
            except TypeError as again:
                raise _refusal(parametrizations, module, f"it fails: {again}") from again


def _shown(module: nn.Module, value: Tensor) -> Any:
    """What the right inverse of a module makes of a value; None if there is none."""
    if not hasattr(module, "right_inverse"):
        return None
    inverse: Any = module.right_inverse
    try:
        return inverse(value)
    except NotImplementedError:
        return None


def _refusal(parametrizations: Any, module: nn.Module, reason: str) -> ValueError:
    before = " and ".join(type(m).__name__ for m in parametrizations.children())
    names = (name for o in parametrizations._owners for name in o if o[name] is parametrizations)
    name = next(names, "tensor")
    return ValueError(
        f"'{name}' is parametrized by {before} already, and {type(module).__name__} cannot come "
        f"after that: {reason}"
    )


def check_appended(name: str, value: Tensor, parametrization: nn.Module) -> None:
    """Raise unless a parametrization keeps the shape and dtype of a value, both ways.

    Raises:
        ValueError: with the words of torch.
    """
    # With A the tensors of the shape and dtype of the value, forward and right_inverse must both
    # map A to A.
    result = parametrization(value)
    if not isinstance(result, Tensor):
        raise ValueError(f"A parametrization must return a tensor. Got {type(result).__name__}.")
    if result.dtype != value.dtype:
        raise ValueError(
            "Registering a parametrization may not change the dtype of the tensor, unless the "
            "`unsafe` flag is enabled.\n"
            f"module.{name}.dtype: {value.dtype}\n"
            f"parametrization(module.{name}).dtype: {result.dtype}"
        )
    if result.shape != value.shape:
        raise ValueError(
            "Registering a parametrization may not change the shape of the tensor, unless the "
            "`unsafe` flag is enabled.\n"
            f"module.{name}.shape: {value.shape}\n"
            f"parametrization(module.{name}).shape: {result.shape}"
        )
    if not hasattr(parametrization, "right_inverse"):
        return
    try:
        inverse: Any = parametrization.right_inverse(result)  # type: ignore[operator]
    except NotImplementedError:
        return
    if not isinstance(inverse, Tensor):
        raise ValueError(
            f"parametrization.right_inverse must return a tensor. Got: {type(inverse).__name__}"
        )
    for what, got, expected in (
        ("dtype", inverse.dtype, value.dtype),
        ("shape", inverse.shape, value.shape),
    ):
        if got != expected:
            raise ValueError(
                f"The tensor returned by parametrization.right_inverse must have the same {what} "
                f"as module.{name}, unless the `unsafe` flag is enabled.\n"
                f"module.{name}.{what}: {expected}\n"
                f"returned {what}: {got}"
            )
