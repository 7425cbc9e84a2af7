"""What a tensor is, and whether it was written."""

from __future__ import annotations

import ctypes
import operator
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from constrained.torch_internals.look_up import find


def has_memory(tensor: Tensor) -> bool:
    """Whether a tensor has numbers. A tracer computes shapes with fake tensors, which have none.

    If torch has no `is_fake`, a computation is tried.
    """
    # There are no fake tensors before this file is imported.
    fakes: Any = sys.modules.get("torch._subclasses.fake_tensor")
    if fakes is None:
        return True
    is_fake = getattr(fakes, "is_fake", None)
    if is_fake is not None:
        return not is_fake(tensor)
    try:
        tensor.new_zeros(1).add(tensor.sum()).tolist()
    except (RuntimeError, NotImplementedError):
        return False
    return True


def is_wrapper(tensor: Tensor) -> bool:
    """Whether a tensor is of a subclass that is made of other tensors."""
    # Torch itself recognizes them by these two methods.
    return (
        type(tensor) is not Tensor
        and hasattr(tensor, "__tensor_flatten__")
        and hasattr(tensor, "__tensor_unflatten__")
    )


def _has_no_memory(value: Tensor) -> bool:
    if value.layout is not torch.strided or value.is_meta:
        return False
    try:
        value.data_ptr()
    except RuntimeError:
        return True
    return False


#: Whether a tensor belongs to a transform of torch.func. Where torch does not tell, its address is
#: asked for: such a tensor has none.
is_transformed: Callable[[Tensor], bool] = (
    find("torch._C._functorch.is_functorch_wrapped_tensor", lambda f: f(torch.empty(0)) is False)
    or _has_no_memory
)


# Whether a tensor stands for a batch of gradients, as with ``is_grads_batched`` of
# torch.autograd.grad. There is no public way to ask. Where this is missing, such a gradient is
# treated as a single one.
_stands_for_many: Callable[[Tensor], bool] | None = find(
    "torch._C._functorch.is_legacy_batchedtensor", lambda f: f(torch.empty(0)) is False
)


def is_batch(tensor: Tensor) -> bool:
    """Whether a gradient stands for a batch of gradients."""
    return is_transformed(tensor) or (_stands_for_many is not None and _stands_for_many(tensor))


def _digest(tensor: Tensor) -> int:
    """A hash of what a tensor holds, for a torch without version counters."""
    strided = tensor.layout is torch.strided and tensor.numel() > 0
    if not strided or tensor.is_meta or is_transformed(tensor) or not has_memory(tensor):
        return 0
    # Read from memory: transforms and tracers would record an operation.
    size, storage = tensor.element_size(), tensor.untyped_storage()
    reach = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    start = tensor.storage_offset() * size
    memory = storage if storage.device.type == "cpu" else storage.cpu()
    return hash(ctypes.string_at(memory.data_ptr() + int(start), (int(reach) + 1) * size))


#: How often a tensor was written, as autograd counts it. An inference tensor has no count. There is
#: no public counter. Where it is missing, a hash of the contents replaces it.
version: Callable[[Tensor], int] = (
    operator.attrgetter("_version")
    if find("torch.Tensor._version", lambda _: torch.zeros(()).add_(1)._version == 1)
    else _digest
)


def has_values(value: Tensor) -> bool:
    """Whether the numbers of a tensor can be read: it is not a meta, fake or traced tensor."""
    if value.is_meta or torch.compiler.is_compiling() or is_transformed(value):
        return False
    return has_memory(value)
