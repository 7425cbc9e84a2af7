"""Specs as strings: ``"low_rank(rank=8)"``, and chains of them, with literals only."""

from __future__ import annotations

import ast
import re
from typing import Any

from constrained.constraint.errors import SpecError
from constrained.constraint.plain_data import short

#: A string of more characters is not parsed.
LONGEST = 10_000

_SPELLING = re.compile(r"\s*(?P<name>[\w.-]+(:[\w.]+)?)\s*(?P<call>\(.*\))?\s*", re.DOTALL)


def links_of_chain(text: str) -> list[str]:
    """The specs of a chain, ``"symmetric | ball(radius=2)"``: split outside of parentheses."""
    found, depth = [""], 0
    for character in text:
        depth += (character == "(") - (character == ")")
        if character == "|" and depth == 0:
            found.append("")
        else:
            found[-1] += character
    return [link.strip() for link in found]


def parse_string(text: str) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    """The name in a string, and the positional and named arguments that follow it.

    Raises:
        SpecError: if the string is malformed.
    """
    match = _SPELLING.fullmatch(text) if len(text) <= LONGEST else None
    if match is None:
        cure = ""
        if text[:LONGEST].count("(") > text[:LONGEST].count(")"):
            cure = " Inside of {...}, YAML ends text at a comma: put it in quotes."
        raise SpecError(
            f"{short(text)} is not a valid spec: write a name, or a name with literal arguments "
            f"such as 'low_rank(rank=8)'.{cure}"
        )
    if match["call"] is None:
        return match["name"], (), {}
    unquoted = ""
    try:
        call = ast.parse("f" + match["call"].replace("\n", " "), mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            raise ValueError
        unquoted = next((f"'{a.id}'" for a in call.args if isinstance(a, ast.Name)), "")
        positional = tuple(ast.literal_eval(a) for a in call.args)
        arguments: dict[str, Any] = {}
        for keyword in call.keywords:
            if keyword.arg is None or keyword.arg in arguments:
                raise ValueError
            if isinstance(keyword.value, ast.Name):
                unquoted = f"{keyword.arg}='{keyword.value.id}'"
            arguments[keyword.arg] = ast.literal_eval(keyword.value)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        if unquoted:
            raise SpecError(
                f"{short(text)} is not a valid spec: put text in quotes, as in {unquoted[:60]}."
            ) from None
        raise SpecError(
            f"{short(text)} is not a valid spec: arguments must be literals such as 8, 0.5, "
            "'cayley', True or (0, 1), each given once."
        ) from None
    return match["name"], positional, arguments
