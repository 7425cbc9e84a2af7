"""How a constraint is written down: strings, mappings, class paths. No code in them is executed.

A class path names a class of a module that is imported already, and none of the module's code runs
to find it.
"""

from __future__ import annotations

import copy
import inspect
import math
import sys
import types
import typing
from collections.abc import Mapping
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from constrained.constraint import registry
from constrained.constraint.argument_schema import argument_types, in_words
from constrained.constraint.argument_schema import parameters as parameters_of
from constrained.constraint.base import Constraint
from constrained.constraint.errors import SpecError
from constrained.constraint.named_views import check_name, is_named
from constrained.constraint.plain_data import check_extent, is_list, is_mapping, short
from constrained.constraint.spec_strings import LONGEST, links_of_chain, parse_string
from constrained.constraint.view import axes

#: A spec may contain so many specs, those in its parts included.
_MOST_SPECS = 128

#: The largest number, by the type that an argument must have.
_LARGEST = {int: 2**63 - 1, float: sys.float_info.max}

#: What a mapping may say beside the constraint, its arguments and its view, and what each is by
#: default; see `constrained.constrain`.
SETTINGS = {"init": "keep", "mode": "parametrize", "on_nonfinite": "raise"}

#: How many specs have been found so far in the one that is being parsed.
_count: ContextVar[list[int] | None] = ContextVar("count", default=None)


@dataclass(frozen=True, eq=False)
class Request:
    """A spec that was parsed: a constraint, the view of the tensor, and where the value starts.

    Attributes:
        constraint: the constraint; `build` copies it for each tensor.
        view: an einops pattern, or the name of a view, as in `named_views`.
        sizes: lengths of axes of the view.
        init, mode, on_nonfinite: see `constrained.constrain`; None where the spec does not say.
    """

    constraint: Constraint | nn.Module
    view: str | None = None
    sizes: Mapping[str, int] = field(default_factory=dict[str, int])
    init: str | None = None
    mode: str | None = None
    on_nonfinite: str | None = None

    def __eq__(self, other: object) -> bool:
        """Whether two specs mean the same, however they are written."""
        if not isinstance(other, Request):
            return NotImplemented
        one, another = self.constraint, other.constraint
        if isinstance(one, Constraint) and isinstance(another, Constraint):
            same = one.spec() == another.spec()
        else:
            same = one is another
        same = same and (self.view, self.sizes) == (other.view, other.sizes)
        return same and all(getattr(self, key) == getattr(other, key) for key in SETTINGS)

    def settings(self) -> dict[str, str]:
        """The settings that are not the default."""
        found = {key: getattr(self, key) for key in SETTINGS}
        return {k: v for k, v in found.items() if v is not None and v != SETTINGS[k]}

    def build(self) -> Constraint | nn.Module:
        """A copy of the constraint for one tensor."""
        return copy.deepcopy(self.constraint)


def parse(spec: Any, /, view: Any = None, **arguments: Any) -> Request:
    """Parse a spec.

    Args:
        spec: a name; a string ``"name(argument=literal)"``; several of these with ``|`` between
            them, or a list of specs, whose maps are applied one after another; a mapping with the
            key ``name``, the arguments, and perhaps ``view``, ``axes``, ``init``, ``mode`` and
            ``on_nonfinite``; a class path
            ``"package.module:Class"``; a `Constraint`; a subclass of it; or any ``nn.Module`` with
            a ``forward``.
        view: an einops pattern, or one of `constrained.constraint.named_views`. The lengths of axes
            may stand among the arguments, or in a mapping ``axes``, which is needed for an axis
            that has the name of an argument.
        arguments: further constructor arguments.

    Raises:
        SpecError: if the spec is not valid (a `ValueError` and a `TypeError`).
        UnknownNameError: for a name that is not registered (a `ValueError` and a `KeyError`).
    """
    count = _count.get()
    if count is None:
        check_extent((spec, arguments))
        # The count is set in a new context, which ends with the call even if Ctrl-C interrupts it.
        return copy_context().run(_parse_first, spec, view, arguments)
    count[0] += 1
    if count[0] > _MOST_SPECS:
        raise SpecError(f"The spec is made of more than {_MOST_SPECS} others.")
    return _parse(spec, view, arguments)


def unwrapped(spec: Any) -> Any:
    """The only element of a list, which is no chain; anything else as it is."""
    while is_list(spec) and len(spec) == 1:
        spec = spec[0]
    return spec


def _parse_first(spec: Any, view: Any, arguments: dict[str, Any]) -> Request:
    _count.set([0])
    return _parse(spec, view, arguments)


def _parse(spec: Any, view: Any, arguments: dict[str, Any]) -> Request:
    settings: dict[str, Any] = {}
    positional: tuple[Any, ...] = ()
    spec = unwrapped(spec)
    if is_mapping(spec):
        given = dict(spec)
        if not all(isinstance(key, str) for key in given):
            raise SpecError(f"The keys of a spec must be strings, got {short(list(given))}.")
        if "name" not in given:
            raise SpecError(
                f"A spec mapping needs the key 'name', as in {{'name': 'orthogonal'}}, got the "
                f"keys {short(list(given))}.{_named_otherwise(given)}"
            )
        spec = given.pop("name")
        view = given.pop("view", view)
        settings = {key: given.pop(key, None) for key in SETTINGS}
        arguments = _merge(spec, given, arguments)
    elif is_list(spec):
        spec, arguments = "chain", _merge("chain", {"parts": list(spec)}, arguments)
    if isinstance(spec, str):
        parts = links_of_chain(spec) if len(spec) <= LONGEST else [spec]
        name, positional, more = (
            parse_string(spec) if len(parts) == 1 else ("chain", (), {"parts": parts})
        )
        arguments = _merge(name, more, arguments)
        name, arguments = _respelled(name, positional, arguments)
        spec = _find_class(name)
    sizes: dict[str, int] = {}
    if view is not None:
        sizes, arguments = _sizes(
            view, parameters_of(spec) if isinstance(spec, type) else {}, arguments
        )
    if isinstance(spec, type) and issubclass(spec, Constraint):
        spec = instantiate(spec, *positional, **arguments)
    elif arguments:
        raise SpecError(
            f"The arguments {short(sorted(arguments))} go with a name or a class; "
            f"{short(spec)} is an object, which has its arguments already."
        )
    made = registry.adapted(spec)
    if not isinstance(made, nn.Module):
        raise SpecError(
            "A constraint is a name, a string such as 'low_rank(rank=8)', a mapping with the key "
            "'name', a Constraint, or another nn.Module (an instance, not a class), got "
            f"{short(made)} ({type(made).__name__})."
        )
    if type(made).forward is nn.Module.forward and "forward" not in vars(made):
        raise SpecError(
            f"A parametrization needs a 'forward' from free parameters to the value, and "
            f"{type(made).__name__} has none."
        )
    return Request(made, view, sizes, **settings)


def _named_otherwise(given: Mapping[str, Any]) -> str:
    """A guess at what a mapping without the key ``name`` means."""
    key, value = next(iter(given.items()), ("", None))
    if len(given) == 1 and (value is None or is_mapping(value)):
        guess = named_by_key(key, value or {})
        if guess:
            return guess
    similar = (key for key in given if registry.did_you_mean(key, ["name"]))
    key = next(similar, "")
    return f" Did you mean 'name' for {short(key)}?" if key else ""


def named_by_key(name: str, arguments: Mapping[Any, Any]) -> str:
    """A guess at a mapping whose key is the name: ``{"ball": {"radius": 2}}``; "" if it is none."""
    if not registry.is_known(name):
        return ""
    return f" Did you mean {short({'name': name, **arguments}, 200)}?"


def _sizes(
    view: Any, parameters: Mapping[str, Any], arguments: dict[str, Any]
) -> tuple[dict[str, int], dict[str, Any]]:
    """The lengths of a view's axes, and the arguments without them.

    Args:
        view: the view that was given.
        parameters: of the constructor.
        arguments: the arguments of the constructor, with lengths of axes among them.

    Raises:
        SpecError: if the view is not valid, or an argument may be the length of an axis as well.
    """
    if not isinstance(view, str):
        raise SpecError(f"A view must be an einops pattern, got {short(view)}.")
    if is_named(view):
        check_name(view)
    names = set[str]() if is_named(view) else axes(view)
    sizes: Any = None if "axes" in parameters else arguments.pop("axes", None)
    sizes = {} if sizes is None else sizes
    if not is_mapping(sizes) or not names.issuperset(sizes):
        raise SpecError(
            f"The axes must be a mapping from axes of the view {short(view)} to their lengths, got "
            f"{short(sizes)}."
        )
    unclear = sorted(names & set(parameters) & set(arguments) - set(sizes))
    if unclear:
        raise SpecError(
            f"'{unclear[0]}' is an argument of the constraint and an axis of the view {view!r}: "
            "call the axis something else."
        )
    given = {axis: arguments.pop(axis) for axis in (names & set(arguments)) - set(parameters)}
    return {**given, **sizes}, arguments


def instantiate(cls: type[Constraint], /, *positional: Any, **arguments: Any) -> Constraint:
    """Make a constraint after checking its arguments against the constructor's signature.

    Raises:
        SpecError: for an argument that is unknown, missing, or of the wrong type.
    """
    name = cls.name or cls.__name__
    parameters = parameters_of(cls)
    takes = f"{name} takes {', '.join(parameters)}." if parameters else f"{name} takes none."
    if len(positional) > len(parameters):
        raise SpecError(f"{name} was given {len(positional)} arguments; {takes}")
    for key, value in zip(parameters, positional, strict=False):
        if key in arguments:
            raise SpecError(f"{name} was given the argument '{key}' twice.")
        arguments[key] = value
    for key in arguments:
        if key not in parameters:
            raise SpecError(
                f"{name} has no argument {short(key)}."
                f"{registry.did_you_mean(key, parameters)} {takes}"
            )
    missing = [
        key
        for key, parameter in parameters.items()
        if parameter.default is inspect.Parameter.empty and key not in arguments
    ]
    if missing:
        raise SpecError(f"{name} needs the argument '{missing[0]}'; {takes}")
    hints = argument_types(cls)
    for key, value in arguments.items():
        if key in hints and not _fits(value, hints[key]):
            raise SpecError(
                f"{name}: the argument '{key}' must be {in_words(hints[key])}, got "
                f"{short(value)} ({type(value).__name__}){_meant(value, hints[key])}."
            )
    return cls(**arguments)


def _merge(name: Any, first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    twice = sorted(set(first) & set(second))
    if twice:
        raise SpecError(f"{short(name)} was given the argument '{twice[0]}' twice.")
    return {**first, **second}


def _respelled(
    name: str, positional: tuple[Any, ...], arguments: dict[str, Any]
) -> tuple[str, dict[str, Any]]:
    """The registered name, and its arguments, for the class path of another library."""
    found = registry.respelled(name) if ":" in name else None
    if found is None:
        return name, arguments
    registered, known = found
    if positional:
        raise SpecError(f"{name} needs its arguments by name: {', '.join(known) or 'none'}.")
    for key in arguments:
        if key not in known:
            raise SpecError(
                f"{name} has no argument {short(key)} that is known here."
                f"{registry.did_you_mean(key, known)} Known are {', '.join(known) or 'none'}."
            )
    renamed = {known[key]: value for key, value in arguments.items()}
    return registered, {key: value for key, value in renamed.items() if key is not None}


def _find_class(name: str) -> type[Constraint]:
    if ":" not in name:
        return registry.get(name)
    module_name, _, path = name.partition(":")
    module = sys.modules.get(module_name)
    classes = registry.classes_of(module_name)
    if classes:
        guess = (
            registry.without_prefix(name)
            or registry.did_you_mean(path, classes)
            or f" Known are {', '.join(classes)}."
        )
        raise SpecError(f"{short(name)} is not a class of {module_name} that is known here.{guess}")
    hint = registry.without_prefix(name)
    if module is None:
        raise SpecError(
            f"The module of {short(name)} is not imported; a spec imports nothing: import "
            f"{short(module_name)[1:-1]} first, or register the constraint under a name.{hint}"
        )
    found: Any = module
    for part in path.split("."):
        # Not getattr: a module may run code when an attribute is read.
        found = vars(found).get(part) if isinstance(found, (types.ModuleType, type)) else None
    if not (isinstance(found, type) and issubclass(found, Constraint)):
        raise SpecError(f"{short(name)} is not a subclass of constrained.Constraint.{hint}")
    if inspect.isabstract(found):
        raise SpecError(f"{short(name)} is an abstract class of constraints, which has no set.")
    return found


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value, as JSON or YAML gives it, has the type of a constructor's annotation."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        # The constructor checks the range.
        return _fits(value, inner[0])
    if hint is Any or isinstance(hint, typing.TypeVar):
        return True
    if origin is typing.Literal:
        return any(type(value) is type(choice) and value == choice for choice in inner)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, choice) for choice in inner)
    if hint is None or hint is type(None):
        return value is None
    if isinstance(value, (str, bytes)):
        # A string is a sequence too, but never meant as one.
        return hint is type(value)
    if isinstance(value, bool):
        return hint is bool
    if isinstance(value, int) and abs(value) > _LARGEST.get(hint, math.inf):
        # No tensor can hold it.
        return False
    if hint is float:
        return isinstance(value, (int, float))
    kind = origin or hint
    if is_list(value) and isinstance(kind, type):
        if not (issubclass(kind, (list, tuple)) or issubclass(list, kind)):
            return False
        element = inner[0] if inner else Any
        if kind is tuple and inner and inner[-1] is not Ellipsis:
            return len(value) == len(inner) and all(map(_fits, value, inner))
        return all(_fits(item, element) for item in value)
    return isinstance(value, kind) if isinstance(kind, type) else True


def _meant(value: Any, hint: Any) -> str:
    """Why a number does not fit: it is too large, or YAML has read it as a string, as 1e-3."""
    if isinstance(value, int) and not isinstance(value, bool) and _fits(1, hint):
        return ", which is too large"
    if not isinstance(value, str) or not _fits(0.5, hint):
        return ""
    try:
        number = float(value[:30])
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        return ""
    digits, _, exponent = repr(number).partition("e")
    point = "" if "." in digits else ".0"
    return f"; YAML reads {digits}{point}{exponent and 'e' + exponent} as a number"
