"""What values the arguments of a constraint may have: as a JSON schema, and in words.

Types and defaults are those of the constructor's signature. Ranges are those that the annotations
declare in the vocabulary of `annotated_types`: ``radius: Annotated[float, Gt(0)]``. The constructor
checks them; a declaration checks nothing.
"""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le, Len, Lt, MaxLen, MinLen
from torch import Tensor

from constrained.constraint.arguments import as_data

_SPEC = "a constraint, as in a config"

#: The type of an argument, or of an element of one, that is itself a spec.
Spec = Annotated[Any, _SPEC]

#: Types that JSON has, and what they are called.
_SIMPLE: Mapping[Any, tuple[str, str]] = {
    float: ("number", "a number"),
    int: ("integer", "a whole number"),
    str: ("string", "a string"),
    bool: ("boolean", "True or False"),
    type(None): ("null", "None"),
}

#: The keyword of JSON schema for each declared range, and the words for it.
_RANGES: Mapping[type, tuple[str, str, str]] = {
    Gt: ("gt", "exclusiveMinimum", "greater than"),
    Ge: ("ge", "minimum", "at least"),
    Lt: ("lt", "exclusiveMaximum", "less than"),
    Le: ("le", "maximum", "at most"),
}


def argument_schemas(cls: type) -> tuple[dict[str, Any], list[str]]:
    """The JSON schema of each argument of a constraint's constructor, and which are required.

    A constraint among the arguments is ``{"$ref": "#/$defs/part"}``; an argument without a type may
    be anything.

    Args:
        cls: the class of the constraint.

    Example:
        >>> from constrained import get
        >>> argument_schemas(get("low_rank"))
        ({'rank': {'type': 'integer', 'minimum': 1}}, ['rank'])
    """
    schemas: dict[str, Any] = {}
    required: list[str] = []
    for name, parameter in parameters(cls).items():
        schemas[name] = _schema(argument_types(cls).get(name, Any))
        if parameter.default is inspect.Parameter.empty:
            required.append(name)
        else:
            schemas[name]["default"] = as_data(parameter.default)
    return schemas, required


@functools.lru_cache
def parameters(cls: type) -> dict[str, inspect.Parameter]:
    """The parameters of a class's constructor, without ``self``."""
    return dict(list(inspect.signature(cls.__init__).parameters.items())[1:])


@functools.lru_cache
def argument_types(cls: type) -> dict[str, Any]:
    """The types of a constructor's parameters, with the ranges that they declare."""
    try:
        return typing.get_type_hints(cls.__init__, include_extras=True)
    except NameError:
        # An annotation that only a type checker can resolve says nothing here.
        return {}


def _schema(hint: Any) -> dict[str, Any]:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        if _SPEC in hint.__metadata__:
            return {"$ref": "#/$defs/part"}
        return {**_schema(inner[0]), **dict(_limits(hint.__metadata__))}
    if hint in _SIMPLE:
        return {"type": _SIMPLE[hint][0]}
    if origin is typing.Literal:
        return {"enum": list(inner)}
    if origin in (typing.Union, types.UnionType):
        # A tensor is no plain data.
        options = [_schema(each) for each in inner if each is not Tensor]
        return options[0] if len(options) == 1 else {"anyOf": options}
    if isinstance(origin, type) and issubclass(origin, Sequence):
        element = _schema(inner[0])
        return {"type": "array", "items": element} if element else {"type": "array"}
    return {}


def _limits(metadata: Iterable[Any]) -> Iterable[tuple[str, Any]]:
    for each in metadata:
        for kind, (attribute, keyword, _) in _RANGES.items():
            if isinstance(each, kind):
                yield keyword, getattr(each, attribute)
        if isinstance(each, (MinLen, Len)) and each.min_length:
            yield "minItems", each.min_length
        if isinstance(each, (MaxLen, Len)) and each.max_length is not None:
            yield "maxItems", each.max_length


def in_words(hint: Any) -> str:
    """What values an argument may have, as a phrase: ``"a number greater than 0"``.

    Args:
        hint: the type of the argument; see `argument_types`.
    """
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        if _SPEC in hint.__metadata__:
            return _SPEC
        limits = [
            f"{words} {getattr(each, attribute):g}"
            for each in hint.__metadata__
            for kind, (attribute, _, words) in _RANGES.items()
            if isinstance(each, kind)
        ]
        return " ".join([in_words(inner[0]), " and ".join(limits)]).rstrip()
    if hint in _SIMPLE:
        return _SIMPLE[hint][1]
    if origin is typing.Literal:
        return " or ".join(map(repr, inner))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(in_words, inner)))
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return f"a list of {_plural(in_words(inner[0]))}"
    if hint is Any:
        return ""
    return "a tensor" if hint is Tensor else getattr(hint, "__name__", str(hint))


def _plural(phrase: str) -> str:
    """``"a whole number at least 1"`` -> ``"whole numbers at least 1"``."""
    if not phrase:
        return "anything"
    for article, noun in (
        ("a ", "whole number"), ("a ", "number"), ("a ", "constraint"), ("a ", "list")
    ):  # fmt: skip
        if phrase.startswith(article + noun):
            return f"{noun}s{phrase.removeprefix(article + noun)}"
    return phrase
