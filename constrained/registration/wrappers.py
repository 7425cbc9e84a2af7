"""Modules inside of a wrapper that has collected their parameters: DDP, FSDP, accelerate.

``DistributedDataParallel`` registers hooks on the parameters that it finds when it is made. FSDP
and tensor parallelism cut them into shards. None of them notices parameters that come or go later:
then gradients are silently not averaged, or sharded tensors meet whole ones. So parametrizing or
releasing a tensor of a wrapped module is an error. The same holds for offloaded modules.
"""

from __future__ import annotations

import gc
import weakref
from typing import Any

import torch
import torch.distributed
from torch import nn

from constrained.atomic.sharded import is_shard
from constrained.torch_internals import shards

#: Every live DistributedDataParallel; None before the first search.
_replicated: weakref.WeakSet[Any] | None = None


def check_not_wrapped(module: nn.Module, path: str) -> None:
    """Raise, before anything has changed, if a wrapper has collected the parameters of a module.

    Args:
        module: the owner of a tensor.
        path: what the user calls the tensor.

    Raises:
        RuntimeError: says what to do instead.
    """
    check_not_offloaded(module, path)
    wrapper = _wrapper(module)
    if wrapper is not None:
        raise RuntimeError(
            f"'{path}' is a tensor of {type(module).__name__} inside a model that {wrapper} has "
            "wrapped, which would miss any parameter that comes or goes: constrain before "
            "wrapping, and release a model without the wrapper."
        )
    if any(t is not None and is_shard(t) for t in module._parameters.values()):
        raise RuntimeError(
            f"'{path}' is a tensor of {type(module).__name__} whose parameters tensor parallelism "
            "has cut into shards, and constraints are those of whole tensors: leave the module out "
            "of the plan of parallelize_module, so that each process has all of it, or constrain "
            "it before with mode='project' or 'penalize'."
        )


def check_not_offloaded(module: nn.Module, path: str) -> None:
    """Raise if accelerate has offloaded a module, and loads its numbers for each call.

    The parameters of such a module are on the meta device between calls, and new ones would be too.
    """
    hooked = (m for m in module.modules() if hasattr(m, "_hf_hook"))
    if any(t.is_meta for m in hooked for t in m.parameters()):
        raise RuntimeError(
            f"'{path}' is a tensor of {type(module).__name__} whose numbers are offloaded, and are "
            "here only while it is called: bring them back first, by "
            "accelerate.hooks.remove_hook_from_submodules(model)."
        )


def _wrapper(module: nn.Module) -> str | None:
    if shards.is_managed(module):
        return "FSDP"
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return None
    if not _is_replicated(module):
        return None
    # A wrapper that nobody uses any more may still be alive in a reference cycle.
    gc.collect()
    return "DistributedDataParallel" if _is_replicated(module) else None


def _is_replicated(module: nn.Module) -> bool:
    return any(module is m for wrapper in _all_replicated() for m in wrapper.modules())


def _all_replicated() -> list[nn.Module]:
    """Every live DistributedDataParallel, since a module does not know what wraps it.

    At the first call they are searched for among all objects. Those made later are noticed when
    they register the module that they wrap.
    """
    from torch.nn.modules.module import register_module_module_registration_hook
    from torch.nn.parallel import DistributedDataParallel

    global _replicated
    if _replicated is None:
        # By type: `isinstance` would make proxies load the objects that they stand for.
        found = [o for o in gc.get_objects() if DistributedDataParallel in type(o).__mro__]
        _replicated = weakref.WeakSet(found)
        known = _replicated

        def note(parent: nn.Module, name: str, child: nn.Module | None) -> None:
            del name, child
            if isinstance(parent, DistributedDataParallel):
                known.add(parent)

        register_module_module_registration_hook(note)
    return list(_replicated)
