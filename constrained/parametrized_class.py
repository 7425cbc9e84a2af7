"""The class of a module that has parametrized tensors: one for each base class and set of names.

Torch makes a new class for every module, which neither pickles nor lets two equal layers share a
compiled graph, and whose properties hold on to the module that they were made for. Here the class
is looked up by what it is made of, its properties know only the name of their tensor, and a module
pickles as "base class, names, state".

It is a plain subclass, from which others may be derived: Pyro and higher do, in place of a module's
class. So its methods call those above them by `super`, and its properties read
``self.parametrizations`` as torch's do, where a class has a ``__getattr__`` of its own.
"""

from __future__ import annotations

import copyreg
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize as torch_parametrize

from constrained.batched_kernels import kernel_methods
from constrained.containers import container_methods
from constrained.gaussian_processes import initialize_methods
from constrained.inversion import raise_named
from constrained.lazy import lazy_methods, materialize_from, waiting
from constrained.linear import linear_methods
from constrained.override import lists, override, overriding
from constrained.parametrization_list import ParametrizationList, read
from constrained.places import is_parametrized
from constrained.refused import refuse_deletion, refuse_none, refusing_methods
from constrained.tools import (
    assign_parameter,
    check_not_distributing,
    class_title,
    tool_methods,
)
from constrained.torch_internals import classes
from constrained.torch_internals.modules import lists_tensors
from constrained.translate import translate
from constrained.undisturbed import Undisturbed
from constrained.write import Target, initialising_methods

# As they are while nobody records what is read and called.
_read_attribute, _call = nn.Module.__getattr__, nn.Module.__call__

_classes: weakref.WeakValueDictionary[tuple[type, tuple[str, ...]], type] = (
    weakref.WeakValueDictionary()
)


class Parametrizations(nn.ModuleDict):
    """The parametrized tensors of a module, and where its tensors stood before.

    Args:
        module: the module, before the first of its tensors is parametrized.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._places: tuple[str, ...] = (*module._parameters, *module._buffers)
        self._shared: tuple[str, ...] = ()

    @property
    def _tied_weights_keys(self) -> dict[str, str]:
        """The originals here that belong to another module first, as transformers asks for them.

        It saves tied tensors once, and finds in this attribute of any module which to leave out.
        """
        lists = ((name, self._modules[name]) for name in sorted(self._shared) if name in self)
        keys = (
            f"{name}.{original}"
            for name, found in lists
            if isinstance(found, ParametrizationList) and len(found._owners) > 1
            for original in found.names()
        )
        return {key: key for key in keys}

    def places(self) -> tuple[str, ...]:
        """The names of the module's parameters and buffers, in their first order.

        The order of ``named_parameters()`` follows from it.
        """
        return self._places

    def __setitem__(self, key: str, module: nn.Module) -> None:
        super().__setitem__(key, module)
        others = tuple(name for name in self._shared if name != key)
        is_shared = isinstance(module, ParametrizationList) and bool(set(module._owners) - {self})
        self._shared = (*others, key) if is_shared else others
        self._own(module)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for module in self.values():
            self._own(module)

    def _own(self, module: nn.Module) -> None:
        if isinstance(module, ParametrizationList):
            module._owners.add(self)


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
    """Give a module, once of class ``base``, the class that its ``parametrizations`` call for."""
    names = class_names(module)
    module.__class__ = parametrized_class(base, names) if names or waiting(module) else base


def class_names(module: nn.Module, *more: str) -> tuple[str, ...]:
    """The names of the tensors that are parametrized in a module, and ``more``, sorted."""
    existing = module.__dict__["_modules"].get("parametrizations") or ()
    return tuple(sorted({*existing, *more}))


def parametrized_class(base: type, names: tuple[str, ...]) -> type:
    """The subclass of ``base`` in which the tensors called ``names`` are properties."""
    # Imported here, since they are built on what uses this.
    if "transformers" in sys.modules:
        from constrained import pretrained

        pretrained.adapt()
    if "botorch" in sys.modules:
        from constrained import subset_models

        subset_models.adapt()
    cls = _classes.get((base, names))
    if cls is None:
        members = {
            "_base_class": base,
            "_names": names,
            "_overridable": True,
            "_overrides": None,
            # Tools that know the layers of torch by this, as torch.fx does, take these for such.
            "__module__": torch_parametrize.__name__,
            "__qualname__": class_title(base),
            "__init_subclass__": classmethod(_init_subclass),
            "__reduce_ex__": _reduce_ex,
            "__setattr__": _setattr,
            "_load_from_state_dict": _load_from_state_dict,
            "named_modules": _named_modules,
            **refusing_methods(),
            **initialising_methods(base, names),
            **tool_methods(),
            **container_methods(base),
            **(linear_methods(base, names) if _reads_as_modules_do(base) else {}),
            **lazy_methods(base, names, parametrized_class),
            **({**kernel_methods(base), **initialize_methods(base)} if names else {}),
            **{name: _property(name) for name in names},
        }
        cls = type(base)(f"Parametrized{base.__name__}", (base,), members)
        cls._parametrized = cls  # type: ignore[attr-defined]
        if _can_be_shared:
            _classes[base, names] = cls
    return cls


class _Answers:
    """What torch is told before it writes into a class, as its own engine does."""

    def is_shared(self, cls: type) -> bool:
        return is_parametrized_class(cls)

    def give_property(self, module: nn.Module, name: str) -> None:
        module.__class__ = parametrized_class(base_class(module), class_names(module, name))


_can_be_shared = classes.ask(_Answers())


def _reads_as_modules_do(cls: type) -> bool:
    """Whether nobody sees, or changes, what is read from the modules of a class."""
    return cls.__getattr__ is _read_attribute  # type: ignore[attr-defined]


def _places_of(module: nn.Module) -> tuple[dict[str, Any], ...]:
    state = module.__dict__
    return state["_parameters"], state["_buffers"], state["_modules"], state


def _property(name: str) -> property:
    def is_parametrized(self: nn.Module) -> bool:
        parametrizations = self.__dict__["_modules"].get("parametrizations")
        return parametrizations is not None and name in parametrizations._modules

    def value(self: nn.Module) -> Tensor:
        # None by the class; see `overriding`.
        if self._overrides is not None:
            instead = overriding(self, name)
            if instead is not None:
                return instead if isinstance(instead, Tensor) else instead.read()
        parametrizations = self.__dict__["_modules"].get("parametrizations")
        found = None if parametrizations is None else parametrizations._modules.get(name)
        if found is not None:
            if type(self).__getattr__ is _read_attribute:
                return read(found, name)
            # Somebody sees, or changes, what is read: it is read as torch reads it.
            seen: Any = self.parametrizations
            found = seen[name]
            if nn.Module.__call__ is _call:
                return read(found, name)
            # And who records the calls of modules, as torch.fx and torch.export do, is to record
            # this one; what was written into a value would not be in the record.
            if isinstance(found, ParametrizationList):
                found.check_written(name)
            return found()
        # The class may have more properties than the module has parametrized tensors, once
        # torch's own functions have been at work on one of its modules.
        for tensors in _places_of(self):
            if name in tensors:
                return tensors[name]
        raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")

    def assign(self: nn.Module, new: Tensor) -> None:
        if new is None:
            raise refuse_none(self, name)
        instead = overriding(self, name)
        if isinstance(instead, Tensor):
            override(self, name, new)
        elif is_parametrized(self):
            found: Any = self.parametrizations[name]  # type: ignore[index]
            try:
                if instead is None:
                    found.right_inverse(new)
                else:
                    instead.assign(new)
            except (ValueError, TypeError) as error:
                raise_named(found, instead.name if instead else name, error)
        else:
            # As pruning and FSDP keep tensors that they compute.
            self.__dict__[name] = new

    def delete(self: nn.Module) -> None:
        if is_parametrized(self):
            raise refuse_deletion(self, name)
        if name not in self.__dict__:
            raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")
        del self.__dict__[name]

    return property(value, assign, delete)


# -------------------------------------------------------------------------- methods of the class


def _init_subclass(cls: Any, **kwargs: Any) -> None:
    super(cls._parametrized, cls).__init_subclass__(**kwargs)
    linear = linear_methods(cls._base_class, cls._names)
    if not _reads_as_modules_do(cls) and cls.forward is linear.get("forward"):
        # It leaves the weight unread where it can.
        cls.forward = super(cls._parametrized, cls).forward


def _setattr(self: Any, name: str, value: Any) -> None:
    # nn.Module would register a Parameter beside the property, which it then cannot see.
    if isinstance(value, nn.Parameter) and name in self.__dict__.get("_modules", {}).get(
        "parametrizations", ()
    ):
        assign_parameter(self, name, value.detach())
    elif torch.compiler.is_compiling():
        # Of a recurrent layer, which torch does not compile, the compiler of torch 2.15 fails at
        # `super`.
        self._base_class.__setattr__(self, name, value)
    else:
        super(self._parametrized, self).__setattr__(name, value)


def _load_from_state_dict(
    self: Any,
    state_dict: dict[str, Any],
    prefix: str,
    local_metadata: Mapping[str, Any],
    strict: bool,
    missing_keys: list[str],
    unexpected_keys: list[str],
    error_msgs: list[str],
) -> None:
    with Undisturbed():
        materialize_from(self, state_dict, prefix, local_metadata)
        known = len(unexpected_keys)
        super(self._parametrized, self)._load_from_state_dict(
            state_dict,
            prefix,
            local_metadata,
            strict,
            missing_keys,
            unexpected_keys,
            error_msgs,
        )
        if is_parametrized(self):
            translate(self, state_dict, prefix, local_metadata, error_msgs)
            unexpected_keys[known:] = [k for k in unexpected_keys[known:] if k in state_dict]


def _reduce_ex(self: Any, protocol: int) -> tuple[Any, ...]:
    cls: Any = type(self)
    state: Any = self.__getstate__()
    slots: dict[str, Any] = {}
    if cls.__getstate__ is nn.Module.__getstate__:
        # nn.Module leaves slots out, and cannot take them back.
        names = copyreg._slotnames(cls)  # type: ignore[attr-defined]
        slots = {name: getattr(self, name) for name in names if hasattr(self, name)}
    if type(state) is dict:
        state = {k: _without_graph(v) for k, v in state.items() if k != "_overrides"}
    if cls is not cls._parametrized:
        # Somebody has derived it, and knows how it is found.
        return *super(cls._parametrized, self).__reduce_ex__(protocol)[:2], state
    base = cls._base_class
    if base.__reduce__ is not object.__reduce__:
        # A class that pickle does not find by its name, and that knows how it is made.
        made, arguments, *_ = base.__reduce__(self)
        return _rebuild_as_made, (made, arguments, class_names(self), slots), state
    return _rebuild, (base, class_names(self), slots), state


def _rebuild_as_made(
    made: Callable[..., nn.Module],
    arguments: tuple[Any, ...],
    names: tuple[str, ...],
    slots: dict[str, Any],
) -> nn.Module:
    return _rebuild(type(made(*arguments)), names, slots)


def _rebuild(base: type, names: tuple[str, ...], slots: dict[str, Any]) -> nn.Module:
    # Without names something waits in a lazy module.
    is_made = names or issubclass(base, LazyModuleMixin)
    cls: Any = parametrized_class(base, names) if is_made else base
    module = cls.__new__(cls)
    for slot, value in slots.items():
        object.__setattr__(module, slot, value)
    return module


def _without_graph(value: Any) -> Any:
    """A list of tensors that a module keeps for itself, fit to be copied.

    A recurrent layer keeps a list of its weights, where values with a graph land; such tensors
    can't be copied, and the layer renews its list when it finds other weights in it.
    """
    if type(value) is list:
        return [
            item.detach() if isinstance(item, Tensor) and item.grad_fn is not None else item
            for item in value
        ]
    return value


def _named_modules(
    self: Any,
    memo: set[nn.Module] | None = None,
    prefix: str = "",
    remove_duplicate: bool = True,
) -> Iterator[tuple[str, nn.Module]]:
    # A compiler knows no frames.
    if torch.compiler.is_compiling():
        return super(self._parametrized, self).named_modules(memo, prefix, remove_duplicate)
    caller = sys._getframe(1)
    # As older versions of torch begin, which ask nothing of the module before.
    check_not_distributing(self, caller)
    if not _members_are_listed(caller):
        return super(self._parametrized, self).named_modules(memo, prefix, remove_duplicate)
    if not remove_duplicate:
        return _with_duplicates(self, prefix)
    memo = set() if memo is None else memo
    return _in_places(self, memo, prefix) if self not in memo else iter(())


def _members_are_listed(frame: FrameType | None) -> bool:
    """Whether modules are enumerated to list their parameters or buffers.

    ``nn.Module`` asks for modules in the same way, whether somebody wants modules or parameters;
    but modules come with the root first, and parameters in places that an optimizer's saved state
    refers to. Only who asks tells the two apart.
    """
    while frame is not None and frame.f_code in _ENUMERATION:
        frame = frame.f_back
    return lists_tensors(frame)


class _Before(nn.Module):
    """Those tensors of a module that come before one of its parametrized tensors.

    ``parameters()`` lists the parameters of a module before those of its submodules, where the
    originals live; but an optimizer's state is saved by position, which must stay as it was.
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
    for name in lists(module):
        target = overriding(module, name)
        if isinstance(target, Target) and target.is_listed:
            among = parameters if target.parametrizations.is_parameter else buffers
            among[name] = target.read()
            hidden += (f"{dot}parametrizations.{name}.",)
    yield prefix, _Before(parameters, buffers)
    for path, child in module._base_class.named_modules(module, None, prefix, False):
        if not f"{path}.".startswith(hidden):
            yield path, child


def _in_places(
    module: nn.Module, memo: set[nn.Module], prefix: str
) -> Iterator[tuple[str, nn.Module]]:
    """A module and its submodules, such that its parameters come in their places."""
    memo.add(module)
    dot = f"{prefix}." if prefix else ""
    parametrizations = module._modules.get("parametrizations")
    if isinstance(parametrizations, Parametrizations):
        passed: dict[str, nn.Parameter | None] = {}
        written: dict[str, Tensor] = {}
        for place in parametrizations.places():
            if place in module._parameters:
                passed[place] = module._parameters[place]
            elif place in parametrizations:
                target = overriding(module, place)
                if isinstance(target, Target) and target.is_listed:
                    among = passed if target.parametrizations.is_parameter else written
                    among[place] = target.read()  # type: ignore[assignment]
                    # Its originals are not listed.
                    memo.add(parametrizations[place])
                    continue
                yield prefix, _Before(passed, {})
                path = f"{dot}parametrizations.{place}"
                yield from parametrizations[place].named_modules(memo, path)
        yield prefix, _Before(passed, written)
    yield prefix, module
    for name, child in module._modules.items():
        if child is not None:
            yield from child.named_modules(memo, f"{dot}{name}")


_ENUMERATION = {
    nn.Module.named_modules.__code__,
    *(function.__code__ for function in (_named_modules, _in_places, _with_duplicates)),
}
