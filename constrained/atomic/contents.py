"""The contents of tensors: replaced in a tensor that stays the same object, copied, checked."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.__future__ import get_swap_module_params_on_conversion

from constrained.atomic.sharded import is_shard, write
from constrained.torch_internals.tensors import has_values, is_wrapper


def store(destination: Tensor, source: Tensor) -> None:
    """Give ``destination``, which stays the same object, a copy of the contents of ``source``.

    A shard gets its part. Call it under ``torch.no_grad()``.
    """
    if is_shard(destination):
        write(destination, source)
    elif destination.shape == source.shape and _alike(destination, source):
        # Copied even if torch is set to swap tensors, which fails if a graph holds the tensor.
        destination.copy_(source)
    else:
        if destination.shape != source.shape:
            # A gradient of the new shape could not be added to the old one.
            destination.grad = None
        if get_swap_module_params_on_conversion() or is_wrapper(destination):
            source = source.clone()
            if isinstance(destination, nn.Parameter) and not isinstance(source, nn.Parameter):
                source = nn.Parameter(source, requires_grad=destination.requires_grad)
            if not is_wrapper(destination):
                # `swap_tensors` swaps the attributes too, and users may have set some.
                vars(source).update(vars(destination))
            torch.utils.swap_tensors(destination, source)
        else:
            destination.set_(own(source))  # type: ignore[call-overload]


def attributes(originals: Sequence[Tensor]) -> dict[str, Any]:
    """The attributes that users have set on a tensor, such as ``_no_weight_decay``.

    These are the attributes that all of its trained originals have. Attributes that are tensors,
    such as a sum of gradients, are left out: each belongs to one original.
    """
    first, *others = [t for t in originals if isinstance(t, nn.Parameter)] or originals
    if is_wrapper(first):
        # Its attributes are the tensors that it is made of.
        return {}
    return {
        key: value
        for key, value in vars(first).items()
        if not isinstance(value, Tensor) and all(key in vars(t) for t in others)
    }


def has_overlap(tensor: Tensor) -> bool:
    """Whether entries of a tensor share memory, as those of an expanded one do."""
    if tensor.layout is not torch.strided:
        return False
    return any(n > 1 and step == 0 for n, step in zip(tensor.shape, tensor.stride(), strict=True))


def _alike(first: Tensor, second: Tensor) -> bool:
    plain = (Tensor, nn.Parameter)
    if type(first) is type(second) and type(first) not in plain:
        return True
    # An expanded tensor, whose entries share memory, cannot be written.
    return {type(first), type(second)} <= {*plain} and not has_overlap(first)


def recording(original: Tensor) -> AbstractContextManager[Any]:
    """A context in which tensors can be made, and written, that are to replace ``original``.

    In inference mode that is switched off, since what is made in it can never be trained, unless
    ``original`` was made in it too.
    """
    inside = torch.is_inference_mode_enabled()
    return torch.inference_mode(False) if inside and not original.is_inference() else nullcontext()


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity. True if it has no values."""
    if not (tensor.is_floating_point() or tensor.is_complex()) or not has_values(tensor):
        return True
    return bool(torch.isfinite(tensor).all())


def own(tensor: Tensor) -> Tensor:
    """A contiguous copy that can be trained, in whatever mode it is made."""
    # LAPACK returns column-major tensors, a gradient has the strides of its parameter, and torch's
    # L-BFGS and parameters_to_vector fail on such strides. And a tensor that is made in inference
    # mode can never be trained.
    with torch.inference_mode(False), torch.no_grad():
        return tensor.detach().clone(memory_format=torch.contiguous_format)
