"""Tables as text for terminals and as HTML for notebooks, with lines of notes below."""

from __future__ import annotations

import html
import shutil
from collections.abc import Iterable, Sequence
from io import StringIO

#: The width of a table that is not printed on a terminal, as in the log of a job.
WIDTH = 140


def as_text(
    headings: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str] = ()
) -> str:
    """A table as wide as the terminal, without the columns that are empty.

    Columns that do not fit beside the others stand below them, after the first column once more.

    Args:
        headings: of the columns.
        rows: the cells of each row.
        notes: lines of text below.
    """
    # Imported here, so that `import constrained` stays fast.
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    width = shutil.get_terminal_size((WIDTH, 0)).columns

    def drawn(columns: Sequence[int]) -> Table:
        made = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        for i in (0, *columns):
            # What is longer is folded.
            most = max(16, width // (3 if i else 2))
            made.add_column(headings[i], overflow="fold", max_width=most)
        for row in rows:
            made.add_row(*(Text(row[i]) for i in (0, *columns)))
        return made

    headings, rows = _filled(headings, rows)
    text = StringIO()
    console, endless = Console(file=text, width=width), Console(width=10**6)
    left = list(range(1, len(headings)))
    if rows and not left:
        console.print(drawn([]))
    while rows and left:
        fitting = (
            n for n in range(len(left), 1, -1) if endless.measure(drawn(left[:n])).maximum <= width
        )
        count = next(fitting, 1)
        console.print(drawn(left[:count]))
        console.print()
        left = left[count:]
    for note in notes:
        console.print(Text(note))
    return "\n".join(map(str.rstrip, text.getvalue().splitlines())).strip("\n")


def as_html(
    headings: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str] = ()
) -> str:
    """The same as HTML, every text of it escaped."""

    def line(cells: Iterable[str], tag: str) -> str:
        # A shape such as 64 x 64 stays on one line.
        return f"<tr>{''.join(f'<{tag}>{_unbroken(cell)}</{tag}>' for cell in cells)}</tr>"

    headings, rows = _filled(headings, rows)
    body = "".join(line(row, "td") for row in rows)
    table = f"<table><thead>{line(headings, 'th')}</thead><tbody>{body}</tbody></table>"
    below = "".join(f"<p>{html.escape(note)}</p>" for note in notes)
    return f"{table if rows else ''}{below}"


def _unbroken(cell: str) -> str:
    return html.escape(cell).replace(" x ", "&nbsp;x&nbsp;")


def _filled(
    headings: Sequence[str], rows: Sequence[Sequence[str]]
) -> tuple[list[str], list[list[str]]]:
    kept = [i for i in range(len(headings)) if any(row[i] for row in rows)]
    return [headings[i] for i in kept], [[row[i] for i in kept] for row in rows]
