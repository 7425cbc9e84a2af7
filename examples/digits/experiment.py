"""What an experiment is, and how it is read from a YAML file.

Nothing in the file is ever executed: a constraint's string holds a name and literals.
"""

# Not strict: jsonschema leaves types of what is used here unknown.
# pyright: basic
from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonschema import Draft202012Validator, ValidationError
from jsonschema.exceptions import best_match

from constrained import read_config

SCHEMA = json.loads(Path(__file__).with_name("experiment.schema.json").read_text("utf-8"))
KINDS = {
    "integer": "a whole number",
    "number": "a number",
    "object": "a mapping",
    "string": "text",
}


class ExperimentError(ValueError):
    """An experiment that cannot be run, in one sentence."""


@dataclass(frozen=True)
class Data:
    """Which sequences the network reads."""

    order: Literal["rows", "pixels"]
    noise_steps: int
    noise_scale: float
    test_fraction: float


@dataclass(frozen=True)
class Model:
    """How large the network is."""

    hidden: int


@dataclass(frozen=True)
class Training:
    """How the network is trained; both networks get the same."""

    epochs: int
    batch: int
    optimizer: str
    learning_rate: float
    learning_rates: Mapping[str, float]
    schedule: Literal["constant", "cosine"]
    clip: float
    seed: int


@dataclass(frozen=True)
class Experiment:
    """One YAML file."""

    name: str
    data: Data
    model: Model
    training: Training
    constraints: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The experiment as plain data, with the keys of the file."""
        return asdict(self)


def read(path: Path) -> Experiment:
    """Read and check an experiment.

    Raises:
        ExperimentError: if the file is missing, is no YAML, or does not follow the schema.
    """
    try:
        given = read_config(path)
    except (OSError, ValueError) as error:
        raise ExperimentError(str(error)) from None
    try:
        # What JSON cannot hold is no part of an experiment: dates, infinity, a list inside itself.
        json.dumps(given, allow_nan=False)
    except (TypeError, ValueError):
        raise ExperimentError(
            f"{path}: an experiment holds only mappings, lists, text, true, false and finite "
            "numbers."
        ) from None
    problems = list(Draft202012Validator(SCHEMA).iter_errors(given))
    if problems:
        # A key that is written wrong is missing as well; the spelling is the news.
        unknown = [p for p in problems if p.validator == "additionalProperties"]
        problem = unknown[0] if unknown else best_match(problems)
        raise ExperimentError(f"{path}: {_schema_problem(problem)}")
    return Experiment(
        name=given["name"],
        data=Data(**given["data"]),
        model=Model(**given["model"]),
        training=Training(**given["training"]),
        constraints=given["constraints"],
    )


def _schema_problem(error: ValidationError) -> str:
    """One sentence in the words of the file, with its place in front."""
    place = ".".join(map(str, error.absolute_path))
    given: Any = error.instance
    schema: Any = error.schema
    wanted: Any = error.validator_value
    if error.validator == "additionalProperties":
        known = list(schema["properties"])
        unknown = next(key for key in given if key not in known)
        close = difflib.get_close_matches(str(unknown), known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}."
        return f"{place or 'the file'} has an unknown key {unknown!r}: {hint}"
    if error.validator == "required":
        missing = next(key for key in wanted if key not in given)
        return f"{place or 'the file'} lacks the key {missing!r}."
    if "propertyNames" in error.absolute_schema_path:
        return f"{place} has the key {given!r}, which must be text."
    expected = {
        "type": lambda kind: f"must be {KINDS[kind]}",
        "enum": lambda choices: f"must be one of {', '.join(choices)}",
        "pattern": lambda _: "must consist of letters, digits, '-' and '_'",
        "minimum": lambda least: f"must be at least {least}",
        "maximum": lambda most: f"must be at most {most}",
        "exclusiveMinimum": lambda least: f"must be greater than {least}",
        "minProperties": lambda _: "must name at least one tensor",
    }[str(error.validator)](wanted)
    return f"{place or 'the file'} {expected}, got {_shown(given)}."


def _shown(value: Any) -> str:
    text = repr(value) if len(repr(value)) <= 40 else f"{repr(value)[:37]}..."
    if isinstance(value, str) and _is_number(value):
        # YAML 1.1 reads 1e-3 as text.
        return f"the text {text} (YAML reads {yaml.safe_dump(float(value)).split()[0]} as a number)"
    return text


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
