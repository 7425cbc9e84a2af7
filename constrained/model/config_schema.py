"""A JSON schema of configs, generated from the registry."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from constrained.attached.attached_constraint import MODES, ON_NONFINITE
from constrained.constraint.argument_schema import argument_schemas
from constrained.constraint.documentation import documentation
from constrained.constraint.named_views import PATTERN as VIEW_NAMES
from constrained.constraint.registry import get, names
from constrained.model.config import WHERE
from constrained.model.start import INITS

#: The version of JSON schema.
DIALECT = "https://json-schema.org/draft/2020-12/schema"

_DESCRIPTION = (
    "A mapping from tensors to constraints, as constrained.constrain takes it. What the schema "
    "cannot tell, and constrained.plan does: whether the tensors exist and their shapes fit, the "
    "arguments inside of the parentheses of a string, and what the arguments of a constraint must "
    "be beside each other, such as low < high. Whole numbers are written without a point."
)

#: Before the names of constraints among the definitions.
_PREFIX = "constraint-"

#: A name with arguments, a chain of several, or the path of a class: their insides are not checked.
_CALL = r"\s*\([^|]*\)\s*"
_CHAIN = r"\|"
_CLASS = r"^\s*[\w.-]+:[\w.]+\s*(\(.*\))?\s*$"


def schema() -> dict[str, Any]:
    """A JSON schema (draft 2020-12) of configs: of a mapping from targets to constraints.

    It is made from the registry: names and aliases, arguments with their types, ranges, defaults
    and meaning, for third-party constraints too. Editors complete and check YAML and JSON by it.

    What it promises of a constraint that is written as a name or as a mapping: it accepts what
    `constrain` accepts, and `constrain` accepts what it accepts, if the tensor fits and the
    arguments fit each other. It does not look into the parentheses of strings, into chains in one
    string, and at classes by their paths; of these it accepts all. Nor does it know what several
    arguments must be beside each other: low < high, parts that can follow each other in a chain,
    as many sizes as parts, equations that have a solution, a mask of zeros and ones, an
    ``event_dim`` that goes with ``dim``, a ``size`` that goes with a circular padding.

    Example:
        >>> import constrained
        >>> found = constrained.schema()
        >>> found["$defs"]["constraint-low_rank"]["properties"]["rank"]["minimum"]
        1
    """
    classes = [get(name) for name in names()]
    spellings = {cls.name or "": [cls.name or "", *cls.aliases] for cls in classes}
    every = sorted(spelling for names_ in spellings.values() for spelling in names_)
    required = {cls.name or "": argument_schemas(cls)[1] for cls in classes}
    alone = sorted(
        spelling for name, names_ in spellings.items() if not required[name] for spelling in names_
    )
    settings: dict[str, Any] = {
        "init": {"enum": [*INITS, None], "description": "Where the tensor starts."},
        "mode": {"enum": [*MODES, None], "description": "How the constraint is kept."},
        "on_nonfinite": {
            "enum": [*ON_NONFINITE, None],
            "description": "What is done about a gradient with NaN or infinity.",
        },
        "where": _where(),
    }
    definitions: dict[str, Any] = {
        "rule": {
            "description": "A constraint; null, or none in TOML, leaves tensors unconstrained.",
            "if": {"type": "object", "not": {"$ref": "#/$defs/is_spec"}},
            "then": {"$ref": "#/$defs/targets", "minProperties": 1},
            "else": {"anyOf": [{"enum": [None, "none"]}, {"$ref": "#/$defs/spec"}]},
        },
        "targets": {
            "description": "Paths and patterns; nested ones mean the same as dotted ones.",
            "type": "object",
            "additionalProperties": {"$ref": "#/$defs/rule"},
        },
        "is_spec": {"required": ["name"], "properties": {"name": {"not": {"type": "object"}}}},
        "spec": {
            "if": {"type": "object"},
            "then": {
                "if": {"required": ["view"], "properties": {"view": {"type": "string"}}},
                "then": {"$ref": "#/$defs/viewed"},
                "else": {"$ref": "#/$defs/mapping"},
            },
            "else": {"anyOf": [{"$ref": "#/$defs/string"}, {"$ref": "#/$defs/list"}]},
        },
        "mapping": {
            "$ref": "#/$defs/named",
            "properties": {"view": {"type": "null"}, **settings},
            "unevaluatedProperties": False,
        },
        "viewed": {
            "description": "A constraint on a rearrangement of the tensor.",
            "$ref": "#/$defs/named",
            "properties": {
                "view": {
                    "description": "An einops pattern, or the name of a view.",
                    "pattern": f"->|^{VIEW_NAMES}$",
                },
                "axes": {
                    "description": "Lengths of axes of the view.",
                    "type": ["object", "null"],
                    "additionalProperties": _LENGTH,
                },
                **settings,
            },
            "unevaluatedProperties": _LENGTH,
        },
        "list": {
            "description": "Constraints whose maps are applied one after another.",
            "if": {"maxItems": 1},
            "then": {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/spec"}},
            "else": {"$ref": "#/$defs/parts"},
        },
        "parts": {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/part"}},
        "part": {
            "if": {"type": "object"},
            "then": {"$ref": "#/$defs/named", "unevaluatedProperties": False},
            "else": {"anyOf": [{"$ref": "#/$defs/string"}, {"$ref": "#/$defs/parts"}]},
        },
        "string": {
            "type": "string",
            "anyOf": [
                {"enum": alone},
                {"pattern": rf"^\s*({_any_of(alone)})\s*$"},
                {"pattern": rf"^\s*({_any_of(every)}){_CALL}$"},
                {"pattern": _CHAIN},
                {"pattern": _CLASS},
            ],
        },
        "named": _named(spellings, every),
    }
    constraints = {
        f"{_PREFIX}{cls.name}": _constraint(cls, spellings[cls.name or ""]) for cls in classes
    }
    return {
        "$schema": DIALECT,
        "title": "Constraints of a model",
        "description": _DESCRIPTION,
        "$ref": "#/$defs/targets",
        "$defs": {**definitions, **constraints},
    }


#: The length of an axis of a view.
_LENGTH = {"type": "integer", "minimum": 1}


def _where() -> dict[str, Any]:
    return {"enum": list(WHERE), "description": "Which of the tensors are taken."}


def _any_of(words: Iterable[str]) -> str:
    return "|".join(map(re.escape, words))


def _named(spellings: Mapping[str, list[str]], every: list[str]) -> dict[str, Any]:
    """A mapping with the name of a constraint and its arguments; it may hold more."""
    by_name: list[dict[str, Any]] = [
        {
            "if": {"required": ["name"], "properties": {"name": {"enum": names_}}},
            "then": {"$ref": f"#/$defs/{_PREFIX}{name}"},
        }
        for name, names_ in spellings.items()
    ]
    # Some of the arguments stand in the string.
    insides: dict[str, Any] = {"required": ["name"], "properties": {"name": {"pattern": r"[(|:]"}}}
    by_name.append({"if": insides, "then": {"additionalProperties": True}})
    return {
        "type": "object",
        "required": ["name"],
        "properties": {
            "name": {
                "type": "string",
                "anyOf": [{"enum": every}, {"$ref": "#/$defs/string"}],
            }
        },
        "allOf": by_name,
    }


def _constraint(cls: Any, spellings: list[str]) -> dict[str, Any]:
    """The arguments of a constraint."""
    arguments, required = argument_schemas(cls)
    text = documentation(cls)
    for argument in text.arguments:
        if argument.text:
            arguments[argument.name]["description"] = argument.text
    return {
        "description": text.summary,
        "properties": {"name": {"enum": spellings}, **arguments},
        "required": required,
    }
