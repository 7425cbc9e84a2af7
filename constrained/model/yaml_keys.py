"""YAML in which a key stands once and 1e-3 is a number, as YAML 1.2 has it, unlike PyYAML.

Imported when a file is read, not with the package.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from constrained.constraint.plain_data import short


class RepeatedKeyError(yaml.MarkedYAMLError):
    """A mapping with two equal keys."""


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which refuses a mapping with two equal keys, and knows each line."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """The data of a node.

        Raises:
            yaml.MarkedYAMLError: if it is none of its kind, such as a date in a 13th month. PyYAML
                raises errors of many types there, without the line.
        """
        try:
            return super().construct_object(node, deep)  # pyright: ignore[reportUnknownVariableType]
        except (yaml.YAMLError, RecursionError):
            raise
        except Exception as error:
            kind = node.tag.rpartition(":")[2]
            text = short(node.value) if isinstance(node, yaml.ScalarNode) else "this"
            raise yaml.MarkedYAMLError(
                problem=f"{text} is no {kind} ({short(str(error), 100)[1:-1]}); put text in quotes",
                problem_mark=node.start_mark,
            ) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping of a node.

        Raises:
            RepeatedKeyError: if a key stands twice. One that ``<<`` merges may stand once more.
        """
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag.endswith(":merge"):
                continue
            key = self.construct_object(key_node)  # pyright: ignore[reportUnknownVariableType]
            if key in seen:
                raise RepeatedKeyError(
                    problem=f"the key {key!r} stands twice in one mapping",
                    problem_mark=key_node.start_mark,
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


# A number with an exponent needs neither point nor sign in YAML 1.2, nor in a spec string.
Loader.add_implicit_resolver(  # pyright: ignore[reportUnknownMemberType]
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+\Z"),
    list("-+.0123456789"),
)


def read_yaml(text: str) -> Any:
    """The data in a text of YAML.

    Raises:
        ValueError: if it is no YAML, or a key stands twice. The sentence begins with the line.
    """
    try:
        return yaml.load(text, Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        kind = "" if isinstance(error, RepeatedKeyError) else "this is no YAML: "
        quotes = _needs_quotes(text, error)
        raise ValueError(f"{where}{kind}{error.problem or error.context}{quotes}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"this is no YAML: {error}") from None


def _needs_quotes(text: str, error: yaml.MarkedYAMLError) -> str:
    """What to do if a line begins with ``*``, which is an alias in YAML."""
    marks = (error.context_mark, error.problem_mark)
    numbers = {mark.line for mark in marks if mark is not None}
    lines = [line.strip() for i, line in enumerate(text.splitlines()) if i in numbers]
    key = next((line.partition(":")[0] for line in lines if line.startswith("*")), "")
    return f"; a key that begins with * needs quotes: {short(key, 100)}" if key else ""
