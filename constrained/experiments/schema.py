"""The schema of experiments: what is wrong with a file, in sentences, and the defaults."""

# Not strict: jsonschema leaves types of what is used here unknown.
# pyright: basic
from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from constrained.constraint.plain_data import short
from constrained.constraint.registry import did_you_mean

SCHEMA: Mapping[str, Any] = json.loads(
    Path(__file__).with_name("experiment.schema.json").read_text("utf-8")
)

_KINDS = {
    "boolean": "true or false",
    "integer": "a whole number",
    "null": "null",
    "number": "a number",
    "object": "a mapping",
    "string": "text",
}


def problems(given: Mapping[str, Any]) -> list[str]:
    """All that is wrong with the content of a file, one sentence each, in the order of the file."""
    # Imported here, so that other commands start without it.
    from jsonschema import Draft202012Validator

    found: dict[str, None] = {}
    for error in Draft202012Validator(SCHEMA).iter_errors(given):
        found |= dict.fromkeys(_sentences(error, found))
    return list(found)


def _sentences(error: Any, known: Mapping[str, None]) -> Iterator[str]:
    place = ".".join(map(str, error.absolute_path))
    where, given, wanted = place or "the file", error.instance, error.validator_value
    if error.validator == "additionalProperties":
        keys = list(error.schema["properties"])
        for unknown in given:
            if unknown not in keys:
                # One that is there is not meant.
                hint = did_you_mean(unknown, [key for key in keys if key not in given])
                hint = hint or f" Known are {', '.join(keys)}."
                yield f"{where} has an unknown key {short(unknown)}.{hint}"
    elif error.validator == "required":
        # Of a key that is written wrong, the spelling is the news.
        for missing in wanted:
            if missing not in given and not _misspelt(missing, given, error.schema):
                yield f"{where} lacks the key {missing!r}."
    else:
        yield f"{where} {_expected(error.validator, wanted)}, got {short(given)}."


def _misspelt(missing: str, given: Mapping[str, Any], schema: Mapping[str, Any]) -> bool:
    if schema.get("additionalProperties", True) is not False:
        return False
    known = schema["properties"]
    open_ = [key for key in known if key not in given]
    return any(
        did_you_mean(key, open_) == f" Did you mean {missing!r}?"
        for key in given
        if key not in known
    )


def _expected(validator: str, wanted: Any) -> str:
    if validator == "type":
        kinds = [wanted] if isinstance(wanted, str) else wanted
        return f"must be {' or '.join(_KINDS[kind] for kind in kinds)}"
    return {
        "enum": lambda: f"must be one of {', '.join(wanted)}",
        "pattern": lambda: "must consist of letters, digits, '-' and '_'",
        "minimum": lambda: f"must be at least {wanted}",
        "maximum": lambda: f"must be at most {wanted}",
        "exclusiveMinimum": lambda: f"must be greater than {wanted}",
        "minProperties": lambda: "must name at least one tensor",
    }[validator]()


def with_defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a valid file, with all that it leaves out, in the order of the schema."""
    return _filled(given, SCHEMA)


def _filled(given: Mapping[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    whole: dict[str, Any] = {}
    for key, inner in schema["properties"].items():
        if key in given:
            part = given[key]
            closed = inner.get("additionalProperties", True) is False
            whole[key] = _filled(part, inner) if closed else part
        elif "default" in inner:
            whole[key] = inner["default"]
    return whole
