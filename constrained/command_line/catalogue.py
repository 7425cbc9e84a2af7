"""``list``, ``show`` and ``schema``: which constraints there are, and how configs write them."""

from __future__ import annotations

import inspect
import textwrap
from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer

from constrained import get, names
from constrained import schema as schema_of_configs
from constrained.command_line.models import Imports, import_all
from constrained.command_line.output import Json, fail, print_json, print_lines, width
from constrained.command_line.picture import draw
from constrained.constraint.documentation import (
    HEADINGS,
    WIDTH,
    Documentation,
    documentation,
    lines,
)
from constrained.constraint.errors import UnknownNameError
from constrained.constraint.registry import did_you_mean

#: The families in the order in which they are listed; others follow.
_FAMILIES = ("scalars", "vectors", "matrices", "kernels", "composite")


def list_constraints(
    words: Annotated[
        list[str] | None, typer.Argument(help="Only those that are about all of these words.")
    ] = None,
    imports: Imports = None,
    as_json: Json = False,
) -> None:
    """List all constraints, or those that are about some words.

    Words are looked for in names, aliases and sentences, and, if they are not there, in the rest of
    the documentation.
    """
    import_all(imports)
    every = [documentation(get(name)) for name in names()]
    found = _about(every, words or [])
    if not found:
        known = [spelling for each in every for spelling in (each.name, *each.aliases)]
        guess = did_you_mean(" ".join(words or []), known)
        fail(f"No constraint is about {' '.join(map(repr, words or []))}.{guess}")
    found.sort(key=lambda each: (_rank(each.family), each.family, each.name))
    if as_json:
        keys = ("name", "aliases", "family", "summary", "spec")
        print_json([{key: getattr(each, key) for key in keys} for each in found])
        return
    print_lines(_table(found), [each.family for each in found])


def _about(every: list[Documentation], words: list[str]) -> list[Documentation]:
    wanted = [word.lower() for word in words]
    texts = {e.name: f"{e.name} {' '.join(e.aliases)} {e.summary}".lower() for e in every}
    found = [each for each in every if all(word in texts[each.name] for word in wanted)]
    if found:
        return found
    texts = {each.name: (inspect.getdoc(get(each.name)) or "").lower() for each in every}
    return [each for each in every if all(word in texts[each.name] for word in wanted)]


def _rank(family: str) -> int:
    return _FAMILIES.index(family) if family in _FAMILIES else len(_FAMILIES)


def _table(found: list[Documentation]) -> list[str]:
    longest = max(len(each.name) for each in found)
    rows: list[str] = []
    for family, members in groupby(found, key=lambda each: each.family):
        rows += [*([""] if rows else []), family]
        for each in members:
            rows += _row(each, longest)
    return rows


def _row(each: Documentation, longest: int) -> list[str]:
    return textwrap.wrap(
        each.summary,
        width(),
        initial_indent=f"  {each.name:<{longest}}  ",
        subsequent_indent=" " * (longest + 4),
        break_long_words=False,
    )


def show(
    name: Annotated[str, typer.Argument(help="The name of a constraint, or an alias.")],
    picture: Annotated[
        Path | None, typer.Option(help="Draw its members into this file, such as set.png.")
    ] = None,
    imports: Imports = None,
    as_json: Json = False,
) -> None:
    """Show a constraint: its set, map, arguments, an example."""
    import_all(imports)
    try:
        # As in "ball(radius=2)".
        cls = get(name.partition("(")[0].strip())
    except UnknownNameError as error:
        fail(str(error))
    if picture is not None:
        draw(cls, picture)
    found = documentation(cls)
    if as_json:
        print_json({**found.to_dict(), "picture": None if picture is None else str(picture)})
        return
    print_lines(lines(found, min(width(), WIDTH)), HEADINGS)
    if picture is not None:
        typer.echo(f"\nPicture: {picture}")


def schema(imports: Imports = None, as_json: Json = False) -> None:
    """Print a JSON schema of configs, for editors."""
    del as_json  # It is JSON in any case.
    import_all(imports)
    print_json(schema_of_configs())
