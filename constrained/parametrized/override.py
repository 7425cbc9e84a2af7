"""Overriding a parametrized tensor for a while: another tensor is read in its place.

``torch.func.functional_call(module, {"weight": tensor}, x)`` does it for one call: nothing is
projected, stored or evaluated. `constrained.writable` does it while the tensor may be written.

An override belongs to one thread. Others read the parametrized tensor meanwhile.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn

from constrained.parametrized.parametrizations import lists_of
from constrained.torch_internals import calls
from constrained.torch_internals.modules import submodules

_lock = threading.Lock()


class Override(ABC):
    """A tensor that is read and written in the place of a parametrized one.

    Args:
        name: the name of the parametrized tensor, or its path, for messages.
        parametrizations: its list.
        is_listed: whether it is listed among the parameters of its module meanwhile.
    """

    def __init__(self, name: str, parametrizations: Any, is_listed: bool) -> None:
        self.name = name
        self.parametrizations = parametrizations
        self.is_listed = is_listed

    @abstractmethod
    def read(self) -> Tensor:
        """The tensor to read."""

    @abstractmethod
    def assign(self, value: Tensor) -> None:
        """What ``module.weight = value`` does."""


def overriding(module: nn.Module, name: str) -> Tensor | Override | None:
    """What overrides a tensor of the module in this thread; None if nothing does."""
    # None is the value of the attribute on the class. torch.compile guards the value of an
    # attribute, but it does not guard that a key is missing from `__dict__`.
    overrides = getattr(module, "_overrides", None)
    if overrides is None:
        return None
    if torch.compiler.is_compiling():
        # A graph runs in any thread.
        found = [override for (other, _), override in overrides.items() if other == name]
        return found[-1] if found else None
    return overrides.get((name, get_ident()))


def override(module: nn.Module, name: str, by: Tensor | Override | None) -> Any:
    """Override a tensor, or end that with None. Returns what has overridden the tensor before."""
    if torch.compiler.is_compiling():
        return _override(module, (name, 0), by)
    with _lock:
        return _override(module, (name, get_ident()), by)


def _override(module: nn.Module, key: tuple[str, int], by: Tensor | Override | None) -> Any:
    overrides: dict[tuple[str, int], Any] = getattr(module, "_overrides", None) or {}
    rest = {other: override for other, override in overrides.items() if other != key}
    if by is not None:
        rest[key] = by
    # The dictionary is replaced, not written, since another thread may be reading it.
    if rest:
        module._overrides = rest  # type: ignore[assignment]
    elif torch.compiler.is_compiling():
        # A graph that set the attribute while it was traced would delete it when it runs.
        module._overrides = None  # type: ignore[assignment]
    elif overrides:
        del module._overrides
    return overrides.get(key)


# ------------------------------------------------ what ``functional_call`` asks before it swaps


def overridable_lists(module: nn.Module) -> dict[str, Any]:
    """The lists that parametrize the tensors of a module, if these can be overridden."""
    return lists_of(module) if hasattr(type(module), "_overridable") else {}


def lists_below(
    root: nn.Module, *, remove_duplicate: bool = True
) -> Iterator[tuple[str, nn.Module, str, Any]]:
    """For each tensor below a module that can be overridden: its path, owner, name and list."""
    for prefix, owner in submodules(root, remove_duplicate=remove_duplicate):
        for name, parametrizations in overridable_lists(owner).items():
            yield f"{prefix}.{name}" if prefix else name, owner, name, parametrizations


def _is_parametrized(module: nn.Module, name: str) -> bool:
    return name in overridable_lists(module)


def _swap(module: nn.Module, name: str, tensor: Tensor | None) -> Tensor | None:
    before = override(module, name, tensor)
    return before if before is None or isinstance(before, Tensor) else before.read()


def _untie(
    module: nn.Module, given: Mapping[str, Tensor], untied: dict[str, Tensor]
) -> dict[str, Tensor]:
    paths_of: dict[int, list[str]] = {}
    for path, _, _, parametrizations in lists_below(module, remove_duplicate=False):
        paths_of.setdefault(id(parametrizations), []).append(path)
    for paths in paths_of.values():
        tied = [given[path] for path in paths if path in given]
        if any(tensor is not tied[0] for tensor in tied):
            raise ValueError(
                f"functional_call got multiple values for keys {sorted(paths)}, "
                "which are tied. Consider using tie_weights=False"
            )
        if tied:
            untied.update(dict.fromkeys(paths, tied[0]))
    return untied


calls.let_torch_use(calls.Overrides(_is_parametrized, _swap, _untie))
