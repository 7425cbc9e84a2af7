"""What a command writes: tables and text on stdout, errors in one line on stderr, or JSON."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from collections.abc import Iterable
from typing import Annotated, Any, NoReturn

import typer

from constrained.constraint.plain_data import is_list, is_mapping

#: The option that every command has.
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def width() -> int:
    """How wide what is printed may be: as the terminal, or as COLUMNS says, or 100."""
    return shutil.get_terminal_size((100, 24)).columns


def print_json(data: Any) -> None:
    """Print data as JSON. NaN and infinity, which JSON does not have, become text."""
    typer.echo(json.dumps(_strict(data), indent=2, ensure_ascii=False, allow_nan=False))


def _strict(data: Any) -> Any:
    if is_mapping(data):
        return {str(key): _strict(value) for key, value in data.items()}
    if is_list(data):
        return [_strict(value) for value in data]
    return str(data) if isinstance(data, float) and not math.isfinite(data) else data


def print_lines(lines: Iterable[str], headings: Iterable[str] = ()) -> None:
    """Print lines of text; those that are one of the headings stand out on a terminal."""
    bold = set(headings) if _is_styled() else set[str]()
    for i, line in enumerate(lines):
        typer.echo(typer.style(line, bold=True) if line in bold or (bold and not i) else line)


def _is_styled() -> bool:
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return sys.stdout is not None and sys.stdout.isatty() and not plain  # pyright: ignore[reportUnnecessaryComparison] - it is None where it was closed


def error_line(sentence: str, kind: str = "Error") -> None:
    """Write a sentence on stderr, in one line."""
    typer.echo(f"{kind}: {for_shell(' '.join(sentence.split()))}", err=True)


def for_shell(text: str) -> str:
    """Text of the library, with the command in place of the function that it names."""
    return text.replace("constrained.names()", "'constrained list'")


def fail(sentence: str) -> NoReturn:
    """End the command because of its input: one line on stderr, and the exit code 2."""
    error_line(sentence)
    raise typer.Exit(2)
