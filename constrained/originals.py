"""What becomes of a tensor when it is parametrized: its original, checked and written in place."""

from __future__ import annotations

import dis
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.__future__ import get_swap_module_params_on_conversion
from torch.nn.parameter import is_lazy

from constrained.constraint import Constraint, has_values
from constrained.sharded import is_shard, write
from constrained.torch_internals.tensors import is_wrapper


def store(destination: Tensor, source: Tensor) -> None:
    """Give ``destination`` the contents of ``source``, keeping its identity; no memory is shared.

    A shard gets its part. Call it under ``torch.no_grad()``.
    """
    if is_shard(destination):
        write(destination, source)
    elif destination.shape == source.shape and _alike(destination, source):
        # Even where swapping is the mode: graphs that hold the destination forbid it.
        destination.copy_(source)
    else:
        if destination.shape != source.shape:
            # It is the gradient of a tensor that is no more, and no other can be added to it.
            destination.grad = None
        if get_swap_module_params_on_conversion() or is_wrapper(destination):
            source = source.clone()
            if isinstance(destination, nn.Parameter) and not isinstance(source, nn.Parameter):
                source = nn.Parameter(source, requires_grad=destination.requires_grad)
            if not is_wrapper(destination):
                # What users have noted on it goes along, and comes back so.
                vars(source).update(vars(destination))
            torch.utils.swap_tensors(destination, source)
        else:
            destination.set_(own(source))  # type: ignore[call-overload]


def attributes(originals: Sequence[Tensor]) -> dict[str, Any]:
    """What users have noted on a tensor, such as ``_no_weight_decay``: on each trained original.

    A tensor among these, say a sum of gradients, is made for the very one that it is noted on.
    """
    first, *others = [t for t in originals if isinstance(t, nn.Parameter)] or originals
    if is_wrapper(first):
        # There they are the tensor itself.
        return {}
    return {
        key: value
        for key, value in vars(first).items()
        if not isinstance(value, Tensor) and all(key in vars(t) for t in others)
    }


def has_overlap(tensor: Tensor) -> bool:
    """Whether entries of a tensor share memory for sure, as those of an expanded one do."""
    if tensor.layout is not torch.strided:
        return False
    return any(n > 1 and step == 0 for n, step in zip(tensor.shape, tensor.stride(), strict=True))


def _alike(first: Tensor, second: Tensor) -> bool:
    plain = (Tensor, nn.Parameter)
    if type(first) is type(second) and type(first) not in plain:
        return True
    # The entries of an expanded tensor share memory, and cannot be written.
    return {type(first), type(second)} <= {*plain} and not has_overlap(first)


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


def recording(original: Tensor) -> AbstractContextManager[Any]:
    """The mode in which tensors are made, and written, that go with ``original``.

    In inference mode that is inference mode for a tensor that was made there, and none for any
    other: what is made in it can never be trained.
    """
    inside = torch.is_inference_mode_enabled()
    return torch.inference_mode(False) if inside and not original.is_inference() else nullcontext()


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


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity; one without values holds nothing."""
    if not (tensor.is_floating_point() or tensor.is_complex()) or not has_values(tensor):
        return True
    return bool(torch.isfinite(tensor).all())


def own(tensor: Tensor) -> Tensor:
    """A contiguous copy, of which gradients may be asked wherever it was made."""
    # LAPACK returns column-major tensors; a gradient takes the strides of its parameter, and
    # torch's L-BFGS and parameters_to_vector fail on those.
    # A tensor that is made in inference mode can never be trained.
    with torch.inference_mode(False), torch.no_grad():
        return tensor.detach().clone(memory_format=torch.contiguous_format)


def register_tensor(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Register a parameter as such, any other tensor as a buffer."""
    if isinstance(tensor, nn.Parameter):
        module.register_parameter(name, tensor)
    else:
        module.register_buffer(name, tensor)
