"""What torch writes into modules, optimizers and checkpoints, and expects to find there.

None of these names has a public counterpart. Comments say what replaces them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import CodeType, FrameType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim import LBFGS

from constrained.torch_internals.look_up import find

#: The methods by which modules of torch give their tensors initial values.
INITIALISING = ("reset_parameters", "_reset_parameters", "reset_running_stats")


def is_normalization(cls: type) -> bool:
    """Whether a class of modules updates its statistics in place when it is called."""
    # They have no public base class.
    files = ("torch.nn.modules.batchnorm", "torch.nn.modules.instancenorm")
    return any(base.__module__ in files for base in cls.__mro__)


def submodules(
    module: nn.Module, *, remove_duplicate: bool = True
) -> Iterator[tuple[str, nn.Module]]:
    """``module.named_modules()``, whose annotation in torch leaves types unknown."""
    found: Any = cast(Any, module).named_modules(remove_duplicate=remove_duplicate)
    return found


# ----------------------------------------------------------------------- replicas of a module

_marks_replicas = find(
    "torch.nn.Module._replicate_for_data_parallel",
    lambda method: "_is_replica" in vars(method(nn.Module())),
)


def is_replica(module: Any) -> bool:
    """Whether a module is a copy that ``DataParallel`` made for a call on another device."""
    if _marks_replicas is not None:
        return "_is_replica" in module.__dict__
    # The parameters of a replica are plain tensors among its attributes.
    return any(isinstance(value, Tensor) for value in module.__dict__.values())


# ------------------------------------------------------------------ who lists tensors of modules


def _code(name: str) -> CodeType | None:
    method = getattr(nn.Module, name, None)
    return getattr(method, "__code__", None)


_LISTS = {
    code
    for code in map(_code, ("_named_members", "named_parameters", "named_buffers"))
    if code is not None
}


_FILE = nn.Module.named_modules.__code__.co_filename

#: Packages that match the listed parameters of a model with ``_parameters`` and ``_modules``, and
#: expect a module's own parameters before those of its submodules.
_WALKERS = ("higher",)


def lists_tensors(frame: FrameType | None) -> bool:
    """Whether a frame, or its caller in the same file, lists parameters or buffers.

    False if the list is for a package that relies on torch's own order.
    """
    while frame is not None and frame.f_code not in _LISTS:
        if frame.f_code.co_filename != _FILE:
            return False
        frame = frame.f_back
    if frame is None:
        return False
    while frame is not None and frame.f_code.co_filename == _FILE:
        frame = frame.f_back
    caller = "" if frame is None else frame.f_globals.get("__name__", "")
    return caller.partition(".")[0] not in _WALKERS


# --------------------------------------------------------------------------- tensor parallelism

#: The attribute of a module that ``torch.distributed.tensor.distribute_module`` reads before it
#: changes anything. Versions that do not read it list the module's ``named_modules`` first.
IS_DISTRIBUTED = "_distribute_module_applied"


def distributes(frame: FrameType) -> bool:
    """Whether a frame is the one that cuts the tensors of a module into shards."""
    return frame.f_code.co_name == "distribute_module"


# ------------------------------------------------------------------------------- global hooks


def _is_dict(found: Any) -> bool:
    return isinstance(found, dict)


_global_hooks = (
    find("torch.nn.modules.module._global_forward_hooks", _is_dict),
    find("torch.nn.modules.module._global_forward_pre_hooks", _is_dict),
    find("torch.nn.modules.module._global_backward_hooks", _is_dict),
    find("torch.nn.modules.module._global_backward_pre_hooks", _is_dict),
)


#: The dictionaries of a module that hold the hooks which run when it is called.
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def hooks_of(module: nn.Module) -> list[Any]:
    """The dictionaries of hooks that run when a module is called, or differentiated."""
    state = module.__dict__
    return [state[name] for name in _HOOKS if name in state]


def global_hooks() -> list[Any]:
    """The dictionaries of hooks that run whenever any module is called.

    One that can't be found is left out: then its hooks run when a value is evaluated, but not at
    each read.
    """
    return [found for found in _global_hooks if found is not None]


# ------------------------------------------------------------ torch.nn.utils.parametrize.cached

_counts_contexts = None not in (
    find("torch.nn.utils.parametrize._cache_enabled", lambda count: count >= 0),
    find("torch.nn.utils.parametrize._cache", lambda cache: isinstance(cache, dict)),
)


def torch_cache() -> object | None:
    """An object for the outermost ``torch.nn.utils.parametrize.cached()``; None outside of one.

    None where torch does not tell: then every read of a foreign parametrization evaluates.
    """
    if _counts_contexts and parametrize._cache_enabled:
        # Torch makes a new dictionary whenever the outermost block is left.
        return parametrize._cache
    return None


# ------------------------------------------------------------------------------- optimizers


def forget_size(optimizer: LBFGS) -> None:
    """Let an optimizer count the entries of its parameters again."""
    # In a new optimizer the attribute with the count is None. Its name is not needed.
    fresh = LBFGS([torch.zeros(1, requires_grad=True)])
    for name, value in vars(fresh).items():
        if value is None:
            setattr(optimizer, name, None)


# ------------------------------------------------------------------------------- checkpoints


def versions_in(state: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The versions of modules in a state dict, by their paths; None if it has none."""
    return getattr(state, "_metadata", None)


def put_versions(state: Any, versions: Mapping[str, Any]) -> None:
    """Put versions of modules into a state dict."""
    state._metadata = versions
