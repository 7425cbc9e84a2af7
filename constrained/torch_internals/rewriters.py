"""Functions of torch that replace a tensor of a module without calling any of its methods.

They write into the dictionaries of a module, or read what they take for a parameter. All of them
are public methods of classes, and are wrapped there, so that every caller gets the wrapped one. No
version of torch lacks them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

Convert = Callable[[nn.Module], nn.Module]


def check_before_norms(check: Callable[[nn.Module, str], None]) -> None:
    """Call ``check(module, name)`` before one of the old norms, which are hooks, is applied."""
    for norm in (WeightNorm, SpectralNorm):
        norm.apply = staticmethod(_checked(norm.apply, check))  # type: ignore[method-assign]


def _checked(apply: Any, check: Callable[[nn.Module, str], None]) -> Callable[..., Any]:
    @functools.wraps(apply)
    def checked(module: nn.Module, name: str, *args: Any, **kwargs: Any) -> Any:
        check(module, name)
        return apply(module, name, *args, **kwargs)

    return checked


def wrap_synchronization(around: Callable[[Convert, nn.Module], nn.Module]) -> None:
    """Let ``around(convert, module)`` convert a module to an ``nn.SyncBatchNorm``."""
    convert: Any = nn.SyncBatchNorm.convert_sync_batchnorm.__func__

    @functools.wraps(convert)
    def converting(cls: Any, module: nn.Module, process_group: Any = None) -> nn.Module:
        # Torch calls this for each submodule.
        return around(lambda m: convert(cls, m, process_group), module)

    nn.SyncBatchNorm.convert_sync_batchnorm = classmethod(converting)  # type: ignore[assignment]
