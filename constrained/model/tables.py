"""Tables as text for terminals and as HTML for notebooks, equal layers in one row of them."""

from __future__ import annotations

import html
import math
import re
import shutil
from collections.abc import Callable, Hashable, Iterable, Sequence
from io import StringIO
from typing import Any, Protocol, TypeVar


class _OfTensor(Protocol):
    @property
    def path(self) -> str:
        """Where the tensor is in the model."""
        ...


R = TypeVar("R", bound=_OfTensor)

#: A shape, which must stand in one line.
_SIZES = re.compile(r"\d x \d")

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
        return f"<tr>{''.join(f'<{tag}{_style(c)}>{html.escape(c)}</{tag}>' for c in cells)}</tr>"

    headings, rows = _filled(headings, rows)
    body = "".join(line(row, "td") for row in rows)
    table = f"<table><thead>{line(headings, 'th')}</thead><tbody>{body}</tbody></table>"
    below = "".join(f"<p>{html.escape(note)}</p>" for note in notes)
    return f"{table if rows else ''}{below}"


def _filled(
    headings: Sequence[str], rows: Sequence[Sequence[str]]
) -> tuple[list[str], list[list[str]]]:
    kept = [i for i in range(len(headings)) if any(row[i] for row in rows)]
    return [headings[i] for i in kept], [[row[i] for i in kept] for row in rows]


def _style(cell: str) -> str:
    return ' style="white-space: nowrap"' if _SIZES.search(cell) else ""


def shape(sizes: Sequence[int], *, known: bool = True) -> str:
    """``48 x 64``, or ``scalar``; empty if there are no sizes since they are not known."""
    return " x ".join(map(str, sizes)) or ("scalar" if known else "")


def grouped(rows: Iterable[R], key: Callable[[R], Hashable]) -> list[tuple[str, list[R]]]:
    """Rows of equal layers together, with a name for each: ``layers.{0..11}.weight``.

    Layers are equal if their rows have one key, and their paths differ in numbers only. They stand
    where the first of them stood.
    """
    alike: dict[Any, list[tuple[tuple[int, ...], R]]] = {}
    for row in rows:
        texts = re.split(r"\d+", row.path)
        numbers = tuple(map(int, re.findall(r"\d+", row.path)))
        # A number with leading zeros is another name.
        name = row.path if "0" in _leading(row.path) else tuple(texts)
        alike.setdefault((key(row), name), []).append((numbers, row))
    found: list[tuple[str, list[R]]] = []
    for (_, name), some in alike.items():
        if isinstance(name, str):
            found.append((name, [row for _, row in some]))
        else:
            found += _labelled(name, some)
    return found


def _leading(path: str) -> set[str]:
    return {number[0] for number in re.findall(r"\d+", path) if len(number) > 1}


def _labelled(
    texts: tuple[str, ...], some: list[tuple[tuple[int, ...], R]]
) -> list[tuple[str, list[R]]]:
    """Rs with a name that stands for all of their paths and no others, or several such groups."""
    axes = [sorted(set(axis)) for axis in zip(*(numbers for numbers, _ in some), strict=True)]
    if math.prod(map(len, axes)) == len(some):
        label = texts[0] + "".join(
            _range(axis) + text for axis, text in zip(axes, texts[1:], strict=True)
        )
        return [(label, [row for _, row in some])]
    # Not every combination is there: one group for each value of the first number that varies.
    first = next(i for i, axis in enumerate(axes) if len(axis) > 1)
    return [
        group
        for value in axes[first]
        for group in _labelled(texts, [pair for pair in some if pair[0][first] == value])
    ]


def _range(numbers: list[int]) -> str:
    """``3``, ``{0..11}`` or ``{0,2,5}``."""
    if len(numbers) == 1:
        return str(numbers[0])
    if numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{{{numbers[0]}..{numbers[-1]}}}"
    return f"{{{','.join(map(str, numbers))}}}"
