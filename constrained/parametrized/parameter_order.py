"""The order of ``parameters()`` and ``buffers()``: originals are listed where their tensor was.

An optimizer saves its state by the positions of parameters, so these must not change when a tensor
is parametrized.

``nn.Module`` lists parameters by going through ``named_modules()``. So a module with parametrized
tensors has its own ``named_modules``. When parameters are being listed, it first gives modules that
hold some of the module's plain tensors, and those with originals in between.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from constrained.parametrized.override import Override, overriding
from constrained.parametrized.parametrizations import Parametrizations, inherited, lists_of
from constrained.parametrized.unsupported import check_not_distributing
from constrained.torch_internals.modules import lists_tensors


def named_modules(
    self: Any, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
) -> Iterator[tuple[str, nn.Module]]:
    """``nn.Module.named_modules``, for a module with parametrized tensors."""
    # Under a compiler there are no frames.
    if torch.compiler.is_compiling():
        return inherited(self).named_modules(memo, prefix, remove_duplicate)
    caller = sys._getframe(1)
    # This is the first method that the parallelize_module of older versions of torch calls.
    check_not_distributing(self, caller)
    if not _members_are_listed(caller):
        return inherited(self).named_modules(memo, prefix, remove_duplicate)
    if not remove_duplicate:
        return _with_duplicates(self, prefix)
    memo = set() if memo is None else memo
    return _in_original_order(self, memo, prefix) if self not in memo else iter(())


def _members_are_listed(frame: FrameType | None) -> bool:
    """Whether modules are enumerated to list their parameters or buffers.

    ``nn.Module`` calls ``named_modules`` in the same way to list modules and to list parameters.
    A list of modules must begin with the root; a list of parameters must have their original order.
    Only the calling code tells the two apart.
    """
    while frame is not None and frame.f_code in _ENUMERATION:
        frame = frame.f_back
    return lists_tensors(frame)


class _PlainTensors(nn.Module):
    """Some plain tensors of a module: those between two of its parametrized tensors.

    ``parameters()`` lists the parameters of a module before those of its submodules, and originals
    belong to a submodule. So modules of this kind are listed before and between these.
    """

    def __init__(self, parameters: dict[str, Any], buffers: dict[str, Any]) -> None:
        super().__init__()
        self._parameters.update(parameters)
        self._buffers.update(buffers)


def _with_duplicates(module: Any, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    """A module and its submodules, without the originals of tensors that are listed themselves."""
    dot = f"{prefix}." if prefix else ""
    parameters: dict[str, Any] = {}
    buffers: dict[str, Any] = {}
    hidden: tuple[str, ...] = ()
    for name in lists_of(module):
        target = overriding(module, name)
        if isinstance(target, Override) and target.is_listed:
            among = parameters if target.parametrizations.is_parameter else buffers
            among[name] = target.read()
            hidden += (f"{dot}parametrizations.{name}.",)
    yield prefix, _PlainTensors(parameters, buffers)
    for path, child in module._base_class.named_modules(module, None, prefix, False):
        if not f"{path}.".startswith(hidden):
            yield path, child


def _in_original_order(
    module: nn.Module, memo: set[nn.Module], prefix: str
) -> Iterator[tuple[str, nn.Module]]:
    """A module and its submodules, such that its parameters come in their original order."""
    memo.add(module)
    dot = f"{prefix}." if prefix else ""
    parametrizations = module._modules.get("parametrizations")
    if isinstance(parametrizations, Parametrizations):
        passed: dict[str, nn.Parameter | None] = {}
        written: dict[str, Tensor] = {}
        for name in parametrizations.tensor_order():
            if name in module._parameters:
                passed[name] = module._parameters[name]
            elif name in parametrizations:
                target = overriding(module, name)
                if isinstance(target, Override) and target.is_listed:
                    among = passed if target.parametrizations.is_parameter else written
                    among[name] = target.read()  # type: ignore[assignment]
                    # Its originals are not listed.
                    memo.add(parametrizations[name])
                    continue
                yield prefix, _PlainTensors(passed, {})
                path = f"{dot}parametrizations.{name}"
                yield from parametrizations[name].named_modules(memo, path)
        yield prefix, _PlainTensors(passed, written)
    yield prefix, module
    for name, child in module._modules.items():
        if child is not None:
            yield from child.named_modules(memo, f"{dot}{name}")


_ENUMERATION = {
    nn.Module.named_modules.__code__,
    *(function.__code__ for function in (named_modules, _in_original_order, _with_duplicates)),
}
