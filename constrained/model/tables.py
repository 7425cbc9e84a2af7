"""Tables as text for terminals and as HTML for notebooks, with lines of notes below."""

from __future__ import annotations

import html
import shutil
import sys
from collections.abc import Sequence
from io import StringIO

#: The width of a table that is not printed on a terminal, as in the log of a job.
WIDTH = 140


def as_text(
    headings: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str] = ()
) -> str:
    """A table as wide as the terminal, without the columns that are empty.

    Args:
        headings: of the columns.
        rows: the cells of each row.
        notes: lines of text below.
    """
    # Imported here, so that `import constrained` stays fast.
    from rich.console import Console
    from rich.table import Table

    headings, rows = _without_empty_columns(headings, rows)
    table = Table(*headings)
    for column in table.columns:
        column.overflow = "fold"
    for row in rows:
        table.add_row(*row)
    text = StringIO()
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else WIDTH
    console = Console(file=text, width=width, markup=False, highlight=False)
    if rows:
        console.print(table)
    for note in notes:
        console.print(note)
    return "\n".join(map(str.rstrip, text.getvalue().splitlines())).rstrip()


def as_html(
    headings: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str] = ()
) -> str:
    """The table of `as_text` as HTML, with all texts escaped."""
    headings, rows = _without_empty_columns(headings, rows)
    head = "".join(f"<th>{html.escape(heading)}</th>" for heading in headings)
    body = "".join(
        f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    below = "".join(f"<p>{html.escape(note)}</p>" for note in notes)
    return f"{table if rows else ''}{below}"


def _without_empty_columns(
    headings: Sequence[str], rows: Sequence[Sequence[str]]
) -> tuple[list[str], list[list[str]]]:
    kept = [i for i in range(len(headings)) if any(row[i] for row in rows)]
    return [headings[i] for i in kept], [[row[i] for i in kept] for row in rows]
