"""What becomes of a tensor when it is parametrized: its original, checked and written in place."""

from __future__ import annotations

import dis
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from constrained.constraint.base import Constraint


def initial_right_inverse(module: nn.Module, value: Any) -> Any:
    """What a parametrization makes of the tensor that it is registered on."""
    if not hasattr(module, "right_inverse"):
        # As in torch: a module without one starts with the tensor as it is.
        return value
    inverse: Any = module.right_inverse
    try:
        return inverse(value)
    except NotImplementedError as error:
        if isinstance(module, Constraint) or not _was_raised_on_purpose(error):
            raise
        return value


def _was_raised_on_purpose(error: BaseException) -> bool:
    """Whether a ``raise`` statement made the error, not a kernel that lacks a dtype."""
    traceback = error.__traceback__
    if traceback is None:
        return True
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    opcode = traceback.tb_frame.f_code.co_code[traceback.tb_lasti]
    return dis.opname[opcode] == "RAISE_VARARGS"


def check_is_there(tensor: Tensor | None, path: str, owner: nn.Module) -> None:
    """Raise if there is no tensor yet that could be parametrized."""
    if tensor is None:
        raise ValueError(
            f"'{path}' of {type(owner).__name__} is None: there is no tensor to parametrize."
        )
    if is_lazy(tensor):
        raise ValueError(
            f"'{path}' of {type(owner).__name__} has no shape yet: call the model once on an "
            "example first, or use constrained.constrain(), which waits for it."
        )


def check_writable_now(original: Tensor) -> None:
    """Raise if a tensor was made in inference mode, and this is not that mode."""
    if original.is_inference() and not torch.is_inference_mode_enabled():
        raise ValueError(
            "the tensor was made in inference mode, so that it can be neither written nor trained; "
            "build the module outside of torch.inference_mode(), or constrain it inside."
        )


def check_records(original: Tensor, modules: Iterable[nn.Module]) -> None:
    """Raise if the parametrizations of a tensor hold tensors that nothing can be trained with."""
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


def check_single(original: Tensor, new: Tensor) -> None:
    """Raise unless ``original`` can become ``new`` in place."""
    if original.dtype != new.dtype:
        raise ValueError(
            "When `right_inverse` outputs one tensor, it may not change the dtype.\n"
            f"original.dtype: {original.dtype}\n"
            f"right_inverse(original).dtype: {new.dtype}"
        )
    if original.device != new.device:
        raise ValueError(
            "When `right_inverse` outputs one tensor, it may not change the device.\n"
            f"original.device: {original.device}\n"
            f"right_inverse(original).device: {new.device}"
        )


def check_elements(new: Sequence[Any]) -> None:
    """Raise unless a right inverse gave tensors."""
    for i, element in enumerate(new):
        if not isinstance(element, Tensor):
            raise ValueError(
                "'right_inverse' must return a Tensor or a Sequence of tensors (list, tuple...). "
                f"Got element {i} of the sequence with type {type(element).__name__}."
            )


def check_value(value: Any, original: Tensor) -> None:
    """Raise unless a value can stand where ``original`` stood."""
    if not isinstance(value, Tensor):
        raise ValueError(f"A parametrization must return a tensor. Got {type(value).__name__}.")
    if value.dtype != original.dtype:
        raise ValueError(
            "Registering a parametrization may not change the dtype of the tensor, unless "
            "`unsafe` flag is enabled.\n"
            f"unparametrized dtype: {original.dtype}\n"
            f"parametrized dtype: {value.dtype}"
        )
    if value.shape != original.shape:
        raise ValueError(
            "Registering a parametrization may not change the shape of the tensor, unless "
            "`unsafe` flag is enabled.\n"
            f"unparametrized shape: {original.shape}\n"
            f"parametrized shape: {value.shape}"
        )


def register_tensor(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Register a parameter as such, any other tensor as a buffer."""
    if isinstance(tensor, nn.Parameter):
        module.register_parameter(name, tensor)
    else:
        module.register_buffer(name, tensor)
