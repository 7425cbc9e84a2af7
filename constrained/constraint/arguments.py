"""Constructor arguments of constraints: compared, written as plain data, set later."""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from constrained.atomic.interrupts import defer_interrupts
from constrained.atomic.undo import all_or_nothing
from constrained.constraint.deprecated import RENAMED, present_name, rename_added_members

#: The attributes in which `nn.Module` keeps the mode and the hooks of a module.
_MODE_AND_HOOKS = frozenset(vars(nn.Module())) - {
    *("_parameters", "_buffers", "_non_persistent_buffers_set", "_modules")
}

_revisions = itertools.count()

#: Called when an argument has been set. If one raises, the argument is reset.
_checks: list[Callable[[nn.Module], None]] = []


def check_when_set(check: Callable[[nn.Module], None]) -> Callable[[nn.Module], None]:
    """Decorator: call the function with a constraint whenever one of its arguments has been set.

    If it raises, the argument is reset.
    """
    _checks.append(check)
    return check


class WithArguments(nn.Module):
    """A module that is made of constructor arguments, which may be set later.

    Class attributes:
        name, aliases: set by `constrained.register`.
    """

    name: ClassVar[str | None] = None
    aliases: ClassVar[tuple[str, ...]] = ()
    _undefined: ClassVar[Sequence[str]] = ()
    _argument_names: ClassVar[tuple[str, ...]] = ()

    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments by name, as stored on the instance."""
        return {name: getattr(self, name) for name in self._made_as()._argument_names}

    def _made_as(self) -> type[WithArguments]:
        """The class whose constructor arguments the instance has.

        Other libraries, such as higher, derive classes with another constructor, and change the
        class of an object that exists. Such an object has the arguments of a base class.
        """
        cls = type(self)
        kinds = (k for k in cls.__mro__ if issubclass(k, WithArguments) and not k._undefined)
        held = {*vars(self), *self._parameters, *self._buffers, *self._modules}
        # Looked up on the class, since evaluating a property may take long.
        made = (k for k in kinds if all(n in held or hasattr(k, n) for n in k._argument_names))
        return next(made, cls)

    def spec(self) -> dict[str, Any]:
        """The constraint as plain data: its registered name and its arguments, but for defaults.

        `constrained.constrain` accepts the result; JSON and YAML can hold it.
        """
        cls = type(self)
        name = cls.name or f"{cls.__module__}:{cls.__qualname__}"
        changed = self._changed_arguments()
        return {"name": name, **{key: as_data(value) for key, value in changed.items()}}

    def _changed_arguments(self) -> dict[str, Any]:
        signature = inspect.signature(self._made_as().__init__).parameters
        return {
            name: value
            for name, value in self.arguments().items()
            if not same_argument(value, signature[name].default)
        }

    def __repr__(self) -> str:
        arguments = ", ".join(
            f"{k}={short_argument(v)}" for k, v in self._changed_arguments().items()
        )
        return f"{type(self).name or type(self).__name__}({arguments})"

    # A changed argument, tensor or submodule changes the set, or the map onto it. So each change is
    # counted, and the engine compares the counts before it reuses a value.

    def __setattr__(self, name: str, value: Any) -> None:
        if name in RENAMED:
            name = present_name(name)
        if name in self._argument_names and "_is_being_built" not in vars(self):
            self._set_argument(name, value)
        else:
            super().__setattr__(name, value)
        self._count_change(maps=name != "training")

    def __delattr__(self, name: str) -> None:
        super().__delattr__(RENAMED.get(name, name))
        self._count_change()

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As for any module; the engine then recomputes the value."""
        super().register_parameter(name, param)
        self._count_change()

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """As for any module; the engine then recomputes the value."""
        super().register_buffer(name, tensor, persistent)
        self._count_change()

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """As for any module; the engine then recomputes the value."""
        super().add_module(name, module)
        self._count_change()

    def __setstate__(self, state: dict[str, Any]) -> None:
        rename_added_members(type(self))
        # The state may have been written by an older version.
        super().__setstate__({RENAMED.get(key, key): value for key, value in state.items()})
        self._count_change()

    def _count_change(self, *, maps: bool = True) -> None:
        # A number that no constraint has had before. A counter of each object would repeat itself
        # when an old state is restored, or when one object takes the place of another.
        state: dict[str, Any] = vars(self)
        state["_revision"] = next(_revisions)
        if maps:
            # `train` and `eval` do not count: they may be called before a backward pass.
            state["_map_revision"] = state["_revision"]

    def _set_argument(self, name: str, value: Any) -> None:
        """Set an argument, and everything that the constructor derives from the arguments.

        Raises:
            ValueError: if a tensor is constrained by this, and its free parameters do not fit the
                new argument. After an error nothing has changed, also if the constructor raises.
        """
        cls, arguments = type(self), self.arguments()
        like, fresh = cls(**arguments), cls(**{**arguments, name: value})
        made = vars(like)
        _continue(fresh, self, like)
        state: dict[str, Any] = vars(self)
        with defer_interrupts(), all_or_nothing([self]):
            state.update(vars(fresh))
            # Attributes that the constructor makes for the old arguments only.
            for key in made.keys() - vars(fresh).keys():
                state.pop(key, None)
            for check in _checks:
                check(self)


def _continue(fresh: nn.Module, old: nn.Module, like: nn.Module | None) -> None:
    """Give a newly built module the mode, hooks and parameters of the one that it replaces.

    Args:
        fresh: built with the new arguments.
        old: the one in use.
        like: built with the old arguments. A buffer of ``old`` is kept if the new arguments do not
            change it.

    Raises:
        ValueError: if it has a parameter where the other has none of that shape.
    """
    state: dict[str, Any] = vars(fresh)
    state.update({key: value for key, value in vars(old).items() if key in _MODE_AND_HOOKS})
    for name, parameter in fresh._parameters.items():
        known = old._parameters.get(name)
        if parameter is None:
            continue
        if known is None or known.shape != parameter.shape:
            raise ValueError(
                f"{type(old).__name__} would need another parameter '{name}', which no optimizer "
                "knows; release() the tensor and constrain() it anew."
            )
        fresh._parameters[name] = known
    for name, buffer in fresh._buffers.items():
        known = old._buffers.get(name)
        if buffer is None or known is None:
            continue
        before = None if like is None else like._buffers.get(name)
        follows = before is None or before.is_meta or not torch.equal(before, buffer)
        fresh._buffers[name] = buffer.to(known.device, known.dtype) if follows else known
    for name, child in fresh._modules.items():
        known = old._modules.get(name)
        if child is None or known is None or child is known:
            continue
        if type(child) is type(known):
            _continue(child, known, None if like is None else like._modules.get(name))


def same_argument(value: Any, default: Any) -> bool:
    """Whether an argument has its default value; tensors are compared by identity."""
    if isinstance(value, Tensor) or isinstance(default, Tensor):
        return value is default
    return type(value) is type(default) and bool(value == default)


def as_data(value: Any) -> Any:
    """An argument as plain data: tensors and tuples as lists."""
    if isinstance(value, Tensor):
        data: Any = cast(Any, value).tolist()
        return data
    return list(map(as_data, cast("tuple[Any, ...]", value))) if type(value) is tuple else value


def as_tuple(value: Any) -> Any:
    """An argument with tuples in place of lists, inner ones too."""
    return tuple(map(as_tuple, cast("list[Any]", value))) if type(value) is list else value


def short_argument(value: Any) -> str:
    """An argument for `repr`. A tensor is shown by its shape."""
    if isinstance(value, Tensor):
        return f"<{' x '.join(map(str, value.shape)) or 'scalar'}>"
    return repr(as_data(value))


def snake_case(name: str) -> str:
    """``PositiveDefinite`` -> ``positive_definite``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
