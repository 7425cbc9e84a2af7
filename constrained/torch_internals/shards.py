"""How modules and parameters that FSDP manages are recognized, and how a shard is cut.

FSDP2 is ``fully_shard``, FSDP1 ``FullyShardedDataParallel``. Both mark modules for the compiler, by
attributes. There is no public way to ask. If this torch does not write these attributes, the
modules that FSDP wraps are searched for, and a flat parameter is recognized by its memory, which is
a part of a larger piece.
"""

from __future__ import annotations

import functools
import gc
import inspect
import sys
from types import FunctionType
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

#: The attribute of a module that FSDP manages, and that of a parameter which FSDP1 has replaced by
#: a piece of it.
_MANAGED, _FLAT = "_is_fsdp_managed_module", "_fsdp_flattened"


def is_managed(module: nn.Module) -> bool:
    """Whether FSDP1 or FSDP2 manages the parameters of a module."""
    if _MANAGED in module.__dict__:
        return True
    # The search cannot be traced, and was made before anything is compiled.
    if torch.compiler.is_compiling() or not _is_loaded() or _is_written(_MANAGED):
        return False
    wrappers = [
        o
        for o in gc.get_objects()
        if any(c.__name__ in ("FSDPModule", "FullyShardedDataParallel") for c in type(o).__mro__)
    ]
    return any(module is m for wrapper in wrappers for m in wrapper.modules())


def is_flat(tensor: Tensor) -> bool:
    """Whether FSDP1 has made a tensor a piece of its flat parameter."""
    if getattr(tensor, _FLAT, False):
        return True
    if torch.compiler.is_compiling() or not _is_loaded() or _is_written(_FLAT):
        return False
    if type(tensor) is not nn.Parameter:
        return False
    # Such a piece is a part of a larger piece of memory.
    return tensor.untyped_storage().nbytes() > tensor.numel() * tensor.element_size()


def _is_loaded() -> bool:
    """Whether there can be a module that FSDP manages."""
    return (
        "torch.distributed.fsdp" in sys.modules
        and torch.distributed.is_available()
        and torch.distributed.is_initialized()
    )


@functools.cache
def _is_written(mark: str) -> bool:
    """Whether this torch writes an attribute: then a function of FSDP contains its name."""
    files = [m for name, m in list(sys.modules.items()) if name.startswith("torch.distributed.")]
    for file in files:
        for value in vars(file).values():
            # `type` and not `isinstance`: some objects there warn when an attribute is read.
            if type(value) is FunctionType and mark in (
                *value.__code__.co_names,
                *value.__code__.co_consts,
            ):
                return True
            if type(value) is str and value == mark:
                return True
    return False


def own_part(source: Tensor, like: Any) -> Any:
    """This process's part of a tensor that all processes have, cut as a ``DTensor`` is."""
    from torch.distributed.tensor import distribute_tensor

    cut: Any = functools.partial(distribute_tensor, source, like.device_mesh, like.placements)
    if "src_data_rank" in inspect.signature(distribute_tensor).parameters:
        # No process needs to send anything: all of them have the source.
        return cut(src_data_rank=None)
    return cut()
