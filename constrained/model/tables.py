"""Tables as text for terminals and as HTML for notebooks, with lines of notes below."""

from __future__ import annotations

import html
import shutil
import sys
import textwrap
from collections.abc import Sequence
from io import StringIO

#: The width of a table that is not printed on a terminal, as in the log of a job.
WIDTH = 140


def as_text(
    headings: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str] = ()
) -> str:
    """A table as wide as the terminal, without the columns that are empty.

    Where words would have to be cut, the cells of each row stand in a paragraph instead.

    Args:
        headings: of the columns.
        rows: the cells of each row.
        notes: lines of text below.
    """
    headings, rows = _filled(headings, rows)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else WIDTH
    lines = _table(headings, rows, _widths(headings, rows, width))
    for row in rows if not lines else ():
        given = (f"{h} {cell}" for h, cell in zip(headings[1:], row[1:], strict=True) if cell)
        lines += [row[0], *_wrapped("; ".join(given), width, "    ")]
    for note in notes:
        lines += _wrapped(note, width)
    return "\n".join(lines)


def _widths(headings: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[int]:
    """How wide each column is, without its frame; nothing if the longest words have no room."""
    columns = list(zip(headings, *rows, strict=True))
    found = [max(map(len, " ".join(column).split()), default=0) for column in columns]
    wanted = [max(map(len, column)) for column in columns]
    spare = width - sum(found) - 3 * len(columns) - 1
    while spare > 0 and found != wanted:
        # To the column that lacks most.
        most = max(range(len(columns)), key=lambda i: wanted[i] - found[i])
        found[most] += 1
        spare -= 1
    return found if spare >= 0 else []


def _table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], widths: Sequence[int]
) -> list[str]:
    if not rows or not widths:
        return []
    # Imported here, so that `import constrained` stays fast.
    from rich.console import Console
    from rich.table import Table

    table = Table(*headings)
    for column, width in zip(table.columns, widths, strict=True):
        column.overflow, column.width = "fold", width
    for row in rows:
        table.add_row(*row)
    text = StringIO()
    Console(
        file=text, width=sum(widths) + 3 * len(widths) + 1, markup=False, highlight=False
    ).print(table)
    return [line.rstrip() for line in text.getvalue().splitlines()]


def _wrapped(text: str, width: int, indent: str = "") -> list[str]:
    return textwrap.wrap(
        text,
        width,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def as_html(
    headings: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str] = ()
) -> str:
    """The same as HTML, every text of it escaped."""
    headings, rows = _filled(headings, rows)
    head = "".join(f"<th>{html.escape(heading)}</th>" for heading in headings)
    body = "".join(
        f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    below = "".join(f"<p>{html.escape(note)}</p>" for note in notes)
    return f"{table if rows else ''}{below}"


def _filled(
    headings: Sequence[str], rows: Sequence[Sequence[str]]
) -> tuple[list[str], list[list[str]]]:
    kept = [i for i in range(len(headings)) if any(row[i] for row in rows)]
    return [headings[i] for i in kept], [[row[i] for i in kept] for row in rows]
