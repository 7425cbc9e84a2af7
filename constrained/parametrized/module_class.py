"""The classes of modules with parametrized tensors: one for each base class and set of names.

Torch makes a new class for every module. Such a class does not pickle, two equal layers cannot
share a compiled graph, and its properties keep the module alive that they were made for. Here a
class is looked up by its base class and the names of the tensors, its properties know only the name
of their tensor, and a module pickles as "base class, names, state".

The class is a plain subclass. Other libraries may derive classes from it and give these to the
modules, as Pyro and higher do. So its methods call those of the base class by `super`. If a class
has its own ``__getattr__``, the properties read ``self.parametrizations`` as torch's do.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize as torch_parametrize

from constrained.parametrized.assignment import assign_parameter, raise_named
from constrained.parametrized.deferred import deferred
from constrained.parametrized.override import override, overriding
from constrained.parametrized.parameter_order import named_modules
from constrained.parametrized.parametrization_list import ParametrizationList, read
from constrained.parametrized.unsupported import (
    class_title,
    deletion_error,
    none_error,
    refusing_members,
)
from constrained.torch_internals import classes

# Noted before tools that record reads or calls, such as torch.fx, replace them.
_read_attribute, _call = nn.Module.__getattr__, nn.Module.__call__


_classes: weakref.WeakValueDictionary[tuple[type, tuple[str, ...]], type] = (
    weakref.WeakValueDictionary()
)


def is_parametrized_class(cls: type) -> bool:
    """Whether `parametrized_class` made the class."""
    return "_base_class" in vars(cls)


def base_class(module: nn.Module) -> type:
    """The class that a module had before any of its tensors was parametrized."""
    cls: Any = type(module)
    if hasattr(cls, "_base_class"):
        return cls._base_class
    parametrizations = getattr(module, "parametrizations", None)
    if isinstance(parametrizations, nn.ModuleDict) and len(parametrizations) > 0:
        return cls.__bases__[0]
    return cls


def set_class(module: nn.Module, base: type) -> None:
    """Give a module the class, derived from ``base``, for the tensors that it has parametrized."""
    names = class_names(module)
    module.__class__ = parametrized_class(base, names) if names or deferred(module) else base


def class_names(module: nn.Module, *more: str) -> tuple[str, ...]:
    """The names of the tensors that are parametrized in a module, and ``more``, sorted."""
    existing = module.__dict__["_modules"].get("parametrizations") or ()
    return tuple(sorted({*existing, *more}))


Members = Callable[[type, tuple[str, ...]], Mapping[str, Any]]

_contributions: list[Members] = []
_patches: dict[str, Callable[[], None]] = {}


def contribute(members: Members) -> Members:
    """Decorator: the function gives members for every class that `parametrized_class` makes.

    Args:
        members: gives the members for a base class and the names of its parametrized tensors.
    """
    _contributions.append(members)
    return members


def patch_when_imported(library: str, patch: Callable[[], None]) -> None:
    """Call ``patch`` whenever a class is looked up, if a library has been imported by then."""
    _patches[library] = patch


def parametrized_class(base: type, names: tuple[str, ...]) -> type:
    """The subclass of ``base`` in which the tensors called ``names`` are properties."""
    for library, patch in _patches.items():
        if library in sys.modules:
            patch()
    cls = _classes.get((base, names))
    if cls is None:
        members = {
            "_base_class": base,
            "_names": names,
            "_overridable": True,
            "_overrides": None,
            # torch.fx recognizes the layers of torch by this, and does not trace into them.
            "__module__": torch_parametrize.__name__,
            "__qualname__": class_title(base),
            "__setattr__": _setattr,
            "named_modules": named_modules,
            **refusing_members(),
            **{name: _property(name) for name in names},
        }
        for contributed in _contributions:
            members |= contributed(base, names)
        cls = type(base)(f"Parametrized{base.__name__}", (base,), members)
        cls._parametrized = cls
        if _can_be_shared:
            _classes[base, names] = cls
    return cls


def _give_property(module: nn.Module, name: str) -> None:
    module.__class__ = parametrized_class(base_class(module), class_names(module, name))


_can_be_shared = classes.let_torch_use(is_parametrized_class, _give_property)


def _dictionaries_of(module: nn.Module) -> tuple[dict[str, Any], ...]:
    state = module.__dict__
    return state["_parameters"], state["_buffers"], state["_modules"], state


def _property(name: str) -> property:
    def is_parametrized(self: nn.Module) -> bool:
        parametrizations = self.__dict__["_modules"].get("parametrizations")
        return parametrizations is not None and name in parametrizations._modules

    def value(self: Any) -> Tensor:
        # The class has None; see `overriding`.
        if self._overrides is not None:
            instead = overriding(self, name)
            if instead is not None:
                return instead if isinstance(instead, Tensor) else instead.read()
        parametrizations = self.__dict__["_modules"].get("parametrizations")
        found = None if parametrizations is None else parametrizations._modules.get(name)
        if found is not None:
            if type(self).__getattr__ is _read_attribute:
                return read(found, name)
            # The user's class, or a tool, watches how attributes are read: read them as torch does.
            lists: Any = self.parametrizations
            found = lists[name]
            if nn.Module.__call__ is _call:
                return read(found, name)
            # A tool records calls of modules, as torch.fx and torch.export do: call the list. A
            # write into the value would be missing from the record.
            if isinstance(found, ParametrizationList):
                found.check_written(name)
            return found()
        # This tensor is not parametrized. Torch's own functions may have been applied to another
        # module of the class, which then has more properties.
        for tensors in _dictionaries_of(self):
            if name in tensors:
                return tensors[name]
        raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")

    def assign(self: Any, new: Any) -> None:
        if new is None:
            raise none_error(self, name)
        instead = overriding(self, name)
        if isinstance(instead, Tensor):
            override(self, name, new)
        elif is_parametrized(self):
            found: Any = self.parametrizations[name]
            try:
                if instead is None:
                    found.right_inverse(new)
                else:
                    instead.assign(new)
            except (ValueError, TypeError) as error:
                raise_named(found, instead.name if instead else name, error)
        else:
            # Pruning and FSDP keep tensors that they compute as plain attributes.
            self.__dict__[name] = new

    def delete(self: nn.Module) -> None:
        if is_parametrized(self):
            raise deletion_error(self, name)
        if name not in self.__dict__:
            raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")
        del self.__dict__[name]

    return property(value, assign, delete)


# -------------------------------------------------------------------------- methods of the class


def _setattr(self: Any, name: str, value: Any) -> None:
    # nn.Module would register the Parameter, which the property would hide.
    if isinstance(value, nn.Parameter) and name in self.__dict__.get("_modules", {}).get(
        "parametrizations", ()
    ):
        assign_parameter(self, name, value.detach())
    elif torch.compiler.is_compiling():
        # The compiler of torch 2.15 fails at `super` for a recurrent layer, which it does not
        # compile as a whole.
        self._base_class.__setattr__(self, name, value)
    else:
        super(self._parametrized, self).__setattr__(name, value)
