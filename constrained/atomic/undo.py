"""Changes of a model that happen completely or not at all.

`all_or_nothing` notes what a change may touch, and puts it back if anything is raised.
"""

from __future__ import annotations

import copy
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from constrained.atomic.contents import store
from constrained.torch_internals.tensors import has_values, is_wrapper

_CONTAINERS = (dict, OrderedDict, set, weakref.WeakSet)


class all_or_nothing:
    """A ``with`` block that puts modules and tensors back as they were if anything is raised in it.

    What cannot be put back, say a tensor whose class refuses to be written, does not keep the rest
    from it. The error that was raised in the block gets a note that names it.

    Args:
        modules: their classes, attributes, parameters, buffers, submodules and hooks are put back:
            the same objects in the same order. What is inside of a submodule is not, unless the
            submodule is given as well.
        tensors: their contents, memory, layout and gradients are put back.
        optimizer: its groups and its state are put back.
        extra_state: whether ``get_extra_state`` and ``set_extra_state`` of the modules are called,
            too. Loading a checkpoint changes that state.
    """

    # This is not a generator function: a generator that is interrupted at its `yield` is closed
    # later, and would then put back what has changed in the meantime.

    def __init__(
        self,
        modules: Iterable[nn.Module],
        tensors: Iterable[Tensor] = (),
        optimizer: Optimizer | None = None,
        *,
        extra_state: bool = False,
    ) -> None:
        found = list(dict.fromkeys(modules))
        self._before: list[Any] = [_Module(module) for module in found]
        self._before += [_Contents(tensor) for tensor in {id(t): t for t in tensors}.values()]
        if optimizer is not None:
            self._before.append(_Optimizer(optimizer))
        if extra_state:
            base = nn.Module.set_extra_state
            self._before += [_ExtraState(m) for m in found if type(m).set_extra_state is not base]

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, *traceback: object) -> None:
        if error is None:
            return
        interrupt: BaseException | None = None
        for saved in self._before:
            try:
                saved.put_back()
            except Exception as failure:
                error.add_note(f"{saved!r} could not be put back: {failure!r}")
            except BaseException as raised:
                # An interrupt is no reason why it should fail again.
                interrupt = raised
                saved.put_back()
        if interrupt is not None:
            raise interrupt


def tensors_of(modules: Iterable[nn.Module]) -> Iterator[Tensor]:
    """The parameters and buffers that are registered in these modules themselves."""
    for module in modules:
        for tensors in (module._parameters, module._buffers):
            yield from (tensor for tensor in tensors.values() if tensor is not None)


def around(owners: Iterable[nn.Module]) -> list[nn.Module]:
    """Modules, and all modules that parametrize their tensors."""
    found: list[nn.Module] = []
    for owner in owners:
        found.append(owner)
        parametrizations = owner._modules.get("parametrizations")
        if parametrizations is not None:
            found += parametrizations.modules()
    return found


class _Module:
    """A module as it was."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._class = module.__class__
        self._attributes = dict(module.__dict__)
        self._containers: list[tuple[Any, Any]] = [
            (value, value.copy()) for value in self._attributes.values() if _is_container(value)
        ]

    def put_back(self) -> None:
        self._module.__class__ = self._class
        attributes = self._module.__dict__
        attributes.clear()
        attributes.update(self._attributes)
        # In place, since others refer to these dictionaries, such as the handles of hooks.
        for container, content in self._containers:
            container.clear()
            container.update(content)


def _is_container(value: Any) -> bool:
    return type(value) in _CONTAINERS


class _Contents:
    """A tensor as it was."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor: Any = tensor
        self._class = type(tensor)
        # A lazy tensor has no contents yet, and ``detach`` does not work on it.
        self._alias = tensor.data if is_lazy(tensor) else tensor.detach()
        self._copy = self._alias.clone()
        self._grad = tensor.grad if tensor.is_leaf else None

    def __repr__(self) -> str:
        return f"A tensor of shape {tuple(self._copy.shape)}"

    def put_back(self) -> None:
        tensor: Any = self._tensor
        # Inference tensors can be written in inference mode only, and others outside of it.
        with torch.inference_mode(self._alias.is_inference()), torch.no_grad():
            if type(tensor) is not self._class:
                tensor.__class__ = self._class
            if tensor.is_leaf:
                # A gradient must have the shape of its tensor, which may be another one now.
                tensor.grad = None
            if is_wrapper(tensor):
                store(tensor, self._copy)
                tensor.grad = self._grad
                return
            tensor.data = self._alias
            if self._grad is not None:
                tensor.grad = self._grad
            if is_lazy(tensor) or not has_values(tensor) or torch.equal(tensor, self._copy):
                # Writing the same numbers would invalidate a graph that holds the tensor.
                return
            store(tensor, self._copy)


class _ExtraState:
    """The extra state of a module as it was."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._state = copy.deepcopy(module.get_extra_state())

    def put_back(self) -> None:
        self._module.set_extra_state(self._state)


class _Optimizer:
    """The groups and the state of an optimizer as they were."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._state = optimizer.state
        self._known = {parameter: dict(state) for parameter, state in optimizer.state.items()}
        self._groups = [(g, dict(g), list(g["params"])) for g in optimizer.param_groups]

    def put_back(self) -> None:
        self._state.clear()
        self._state.update(self._known)
        for group, settings, parameters in self._groups:
            group.clear()
            group.update(settings)
            group["params"][:] = parameters
