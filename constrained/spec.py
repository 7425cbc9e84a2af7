"""How a constraint is written down: strings, mappings, class paths. Data only: nothing is executed.

A spec string is parsed by ``ast`` and may hold literals only; a class path names a class of a
module that is imported already, looked up without running any of the module's code.
"""

from __future__ import annotations

import ast
import copy
import inspect
import re
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from constrained import registry
from constrained.constraint import Constraint
from constrained.view import axes

_LONGEST = 10_000
_SPELLING = re.compile(r"\s*(?P<name>[\w.-]+(:[\w.]+)?)\s*(?P<call>\(.*\))?\s*", re.DOTALL)


class SpecError(TypeError, ValueError):
    """A spec that is no description of a constraint."""


@dataclass(frozen=True, eq=False)
class Request:
    """What is asked for one target: a constraint, how the tensor is seen, where it starts."""

    constraint: Constraint | nn.Module
    view: str | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    init: str | None = None

    def __eq__(self, other: object) -> bool:
        """Whether the same is asked for, by whatever spelling."""
        if not isinstance(other, Request):
            return NotImplemented
        mine, theirs = self.constraint, other.constraint
        if isinstance(mine, Constraint) and isinstance(theirs, Constraint):
            same = mine.spec() == theirs.spec()
        else:
            same = mine is theirs
        return same and (self.view, self.sizes, self.init) == (other.view, other.sizes, other.init)

    def build(self) -> Constraint | nn.Module:
        """A constraint of one's own for each tensor."""
        return copy.deepcopy(self.constraint)


def parse(spec: Any, view: str | None = None, **arguments: Any) -> Request:
    """Understand a spec.

    Args:
        spec: a name, a string ``"name(argument=literal)"``, several of these with ``|`` between
            them, one map after another, a mapping with the key ``name``, the
            arguments and perhaps ``view`` and ``init``, a class path ``"package.module:Class"``,
            a `Constraint`, a subclass of it, or any ``nn.Module`` with a ``forward``.
        view: an einops pattern; the lengths of its axes may stand among the arguments.
        arguments: further constructor arguments.

    Raises:
        SpecError: one sentence that says what is wrong (a `ValueError` and a `TypeError`).
        UnknownNameError: for a name that is not registered (a `ValueError` and a `KeyError`).
    """
    init = None
    positional: tuple[Any, ...] = ()
    if isinstance(spec, Mapping):
        given = dict(spec)
        if not all(isinstance(key, str) for key in given):
            raise SpecError(f"The keys of a spec must be strings, got {_short(list(given))}.")
        if "name" not in given:
            raise SpecError(
                f"A spec mapping needs the key 'name', as in {{'name': 'orthogonal'}}, got the "
                f"keys {_short(list(given))}."
            )
        spec = given.pop("name")
        view = given.pop("view", view)
        init = given.pop("init", None)
        arguments = _merge(spec, given, arguments)
    if isinstance(spec, str):
        links = _links(spec)
        name, positional, more = (
            _parse_string(spec) if len(links) == 1 else ("chain", (), {"parts": links})
        )
        arguments = _merge(name, more, arguments)
        name, arguments = _respelled(name, positional, arguments)
        spec = _find_class(name)
    if view is not None and not isinstance(view, str):
        raise SpecError(f"A view must be an einops pattern, got {_short(view)}.")
    sizes: dict[str, int] = {}
    if view is not None:
        constructor = _parameters(spec) if isinstance(spec, type) else {}
        sizes = {a: arguments.pop(a) for a in axes(view) & set(arguments) if a not in constructor}
    if isinstance(spec, type) and issubclass(spec, Constraint):
        spec = instantiate(spec, *positional, **arguments)
    elif arguments:
        raise SpecError(
            f"The arguments {_short(sorted(arguments))} go with a name or a class; "
            f"{_short(spec)} is an object that has its own."
        )
    if not isinstance(spec, Constraint):
        spec = registry.adapted(spec) or spec
    if not isinstance(spec, nn.Module):
        raise SpecError(
            "A constraint is a name, a string such as 'low_rank(rank=8)', a mapping with the key "
            f"'name', or a Constraint, got {_short(spec)} ({type(spec).__name__})."
        )
    if type(spec).forward is nn.Module.forward and "forward" not in vars(spec):
        raise SpecError(
            f"A parametrization needs a 'forward' from free parameters to the value, and "
            f"{type(spec).__name__} has none."
        )
    return Request(spec, view, sizes, init)


def instantiate(cls: type[Constraint], *positional: Any, **arguments: Any) -> Constraint:
    """Make a constraint, with its arguments checked against the constructor's signature.

    Raises:
        SpecError: for an argument that is unknown, missing, or of the wrong type.
    """
    name = cls.name or cls.__name__
    parameters = _parameters(cls)
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
                f"{name} has no argument {key!r}.{registry.did_you_mean(key, parameters)} {takes}"
            )
    missing = [
        key
        for key, parameter in parameters.items()
        if parameter.default is inspect.Parameter.empty and key not in arguments
    ]
    if missing:
        raise SpecError(f"{name} needs the argument '{missing[0]}'; {takes}")
    hints = _hints(cls)
    for key, value in arguments.items():
        if key in hints and not _fits(value, hints[key]):
            raise SpecError(
                f"{name}: the argument '{key}' must be {_describe(hints[key])}, got "
                f"{_short(value)} ({type(value).__name__})."
            )
    return cls(**arguments)


def _merge(name: Any, first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    twice = sorted(set(first) & set(second))
    if twice:
        raise SpecError(f"{_short(name)} was given the argument '{twice[0]}' twice.")
    return {**first, **second}


def _links(text: str) -> list[str]:
    """The specs of a chain, ``"symmetric | ball(radius=2)"``: cut where no parenthesis is open."""
    links, depth = [""], 0
    for character in text:
        depth += (character == "(") - (character == ")")
        if character == "|" and depth == 0:
            links.append("")
        else:
            links[-1] += character
    return [link.strip() for link in links]


def _parse_string(text: str) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    match = _SPELLING.fullmatch(text) if len(text) <= _LONGEST else None
    if match is None:
        raise SpecError(
            f"{_short(text)} is no spec: write a name, or a name with literal arguments such as "
            "'low_rank(rank=8)'."
        )
    if match["call"] is None:
        return match["name"], (), {}
    try:
        call = ast.parse("f" + match["call"].replace("\n", " "), mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            raise ValueError
        positional = tuple(ast.literal_eval(a) for a in call.args)
        arguments: dict[str, Any] = {}
        for keyword in call.keywords:
            if keyword.arg is None or keyword.arg in arguments:
                raise ValueError
            arguments[keyword.arg] = ast.literal_eval(keyword.value)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        raise SpecError(
            f"{_short(text)} is no spec: arguments must be literals such as 8, 0.5, 'cayley', "
            "True or (0, 1), each given once."
        ) from None
    return match["name"], positional, arguments


def _respelled(
    name: str, positional: tuple[Any, ...], arguments: dict[str, Any]
) -> tuple[str, dict[str, Any]]:
    """Our name and arguments for those of another library."""
    ours = registry.respelled(name) if ":" in name else None
    if ours is None:
        return name, arguments
    known = ours[1]
    if positional:
        raise SpecError(f"{name} needs its arguments by name: {', '.join(known) or 'none'}.")
    for key in arguments:
        if key not in known:
            raise SpecError(
                f"{name} has no argument {key!r} that is known here."
                f"{registry.did_you_mean(key, known)} Known are {', '.join(known) or 'none'}."
            )
    renamed = {known[key]: value for key, value in arguments.items() if known[key] is not None}
    return ours[0], renamed  # type: ignore[return-value]


def _find_class(name: str) -> type[Constraint]:
    if ":" not in name:
        return registry.get(name)
    module_name, _, path = name.partition(":")
    module = sys.modules.get(module_name)
    if module is None:
        raise SpecError(
            f"The module of {name!r} is not imported; a spec imports nothing: import "
            f"{module_name} first, or register the constraint under a name."
        )
    found: Any = module
    for part in path.split("."):
        # Not getattr: a module may run code when an attribute is asked for.
        found = vars(found).get(part) if isinstance(found, (types.ModuleType, type)) else None
    if not (isinstance(found, type) and issubclass(found, Constraint)):
        raise SpecError(f"{name!r} is no subclass of constrained.Constraint.")
    return found


def _parameters(cls: type) -> dict[str, inspect.Parameter]:
    parameters = dict(inspect.signature(cls.__init__).parameters)
    parameters.pop("self", None)
    return parameters


def _hints(cls: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls.__init__)
    except NameError:
        # An annotation that only a type checker can resolve checks nothing here.
        return {}


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value, as JSON or YAML gives it, is what a constructor's annotation asks for."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or isinstance(hint, typing.TypeVar):
        return True
    if origin is typing.Literal:
        return any(type(value) is type(choice) and value == choice for choice in inner)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, choice) for choice in inner)
    if hint is None or hint is type(None):
        return value is None
    if isinstance(value, bool):
        return hint is bool
    if hint is float:
        return isinstance(value, (int, float))
    kind = origin or hint
    if isinstance(value, (list, tuple)) and isinstance(kind, type):
        if not (issubclass(kind, (list, tuple)) or issubclass(list, kind)):
            return False
        element = inner[0] if inner else Any
        if kind is tuple and inner and inner[-1] is not Ellipsis:
            return len(value) == len(inner) and all(map(_fits, value, inner))
        return all(_fits(item, element) for item in value)
    return isinstance(value, kind) if isinstance(kind, type) else True


def _describe(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(map(repr, typing.get_args(hint)))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(_describe(inner) for inner in typing.get_args(hint))
    names = {float: "a number", int: "a whole number", str: "a string", bool: "True or False"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def _short(value: Any) -> str:
    text = repr(value) if not hasattr(value, "shape") else f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."
