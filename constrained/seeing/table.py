"""A report as a table, in a terminal and in a notebook: equal layers share a row."""

from __future__ import annotations

import html
import math
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from io import StringIO
from typing import Any, NamedTuple

from constrained.constraint.cost import COSTS
from constrained.seeing.measured import excess
from constrained.seeing.row import Row

_EMPTY = "No tensor is constrained."

#: The width where there is no terminal that has one.
_WIDTH = 110


class _Column(NamedTuple):
    """A column of the table.

    Attributes:
        heading: above it.
        cell: its text for the rows that share one.
        is_known: whether it says something about a row.
        meaning: what it says, unless the heading tells.
    """

    heading: str
    cell: Callable[[Sequence[Row]], str]
    is_known: Callable[[Row], bool]
    meaning: str = ""


def _always(row: Row) -> bool:
    del row
    return True


def _number(name: str) -> Callable[[Sequence[Row]], str]:
    """The largest of an attribute, with two digits."""

    def cell(rows: Sequence[Row]) -> str:
        found = worst(getattr(row, name) for row in rows)
        return "" if found is None else f"{found:.2g}"

    return cell


def worst(numbers: Iterable[float | None], *, least: bool = False) -> float | None:
    """The largest of the numbers that are known, or the least; NaN if one is."""
    known = [x for x in numbers if x is not None]
    if not known:
        return None
    if any(map(math.isnan, known)):
        return math.nan
    return min(known) if least else max(known)


def _share(name: str) -> Callable[[Sequence[Row]], str]:
    def cell(rows: Sequence[Row]) -> str:
        found = worst(getattr(row, name) for row in rows)
        if found is None:
            return ""
        return f"{found:.0%}" if found == 0 or found >= 0.005 else "< 1%"

    return cell


def _violation(rows: Sequence[Row]) -> str:
    row = _farthest(rows)
    return "" if row.holds is None else f"{row.violation:.1e}"


def _holds(rows: Sequence[Row]) -> str:
    return {True: "yes", False: "NO", None: "?"}[_farthest(rows).holds]


def _farthest(rows: Sequence[Row]) -> Row:
    """The row that is farthest from its set, in units of its tolerance."""
    return max(rows, key=lambda row: excess(row.violation, row.tolerance))


def _slack(rows: Sequence[Row]) -> str:
    found = worst((row.slack for row in rows), least=True)
    if found is None:
        return ""
    return "0" if abs(found) <= min(row.tolerance for row in rows) else f"{found:.2g}"


def _rank(rows: Sequence[Row]) -> str:
    found = worst(row.rank for row in rows)
    return "" if found is None else f"{found:.0f}"


def _cost(rows: Sequence[Row]) -> str:
    known = [COSTS.index(row.cost) for row in rows if row.cost is not None]
    return COSTS[max(known)] if known else ""


def _is_known(name: str) -> Callable[[Row], bool]:
    return lambda row: getattr(row, name) is not None


def _is_thin(row: Row) -> bool:
    """Whether some elements have not full rank."""
    return row.rank is not None and row.rank < min(row.shape[-2:], default=0)


def _constraint(rows: Sequence[Row]) -> str:
    return rows[0].constraint


def _shape(rows: Sequence[Row]) -> str:
    return " x ".join(map(str, rows[0].shape))


def _is_at_boundary(row: Row) -> bool:
    return bool(row.at_boundary)


def _is_flat(row: Row) -> bool:
    return row.flat > 0


_COLUMNS = (
    _Column("constraint", _constraint, _always),
    _Column("shape", _shape, _always),
    _Column("violation", _violation, _always),
    _Column("holds", _holds, _always),
    _Column(
        "slack",
        _slack,
        _is_known("slack"),
        "how far the nearest element is from the boundary of the set",
    ),
    _Column(
        "at bound",
        _share("at_boundary"),
        _is_at_boundary,
        "the share of elements on the boundary",
    ),
    _Column(
        "flat",
        _share("flat"),
        _is_flat,
        "the share of elements that an optimizer hardly moves",
    ),
    _Column(
        "condition",
        _number("condition"),
        _is_known("condition"),
        "the largest singular value over the smallest one that is not zero",
    ),
    _Column("rank", _rank, _is_thin, "how many singular values are not zero"),
    _Column(
        "moved",
        _number("moved"),
        _is_known("moved"),
        "how far the tensor went when it was constrained, relative to its norm",
    ),
    _Column(
        "drift",
        _number("drift"),
        _is_known("drift"),
        "how far it is from the start, relative to the norm there",
    ),
    _Column("step", _cost, _is_known("cost"), "what a training step takes beyond a plain one"),
)


def as_text(rows: Sequence[Row], notes: Sequence[str]) -> str:
    """The table in the width of the terminal; columns that do not fit are below the others."""
    if not rows:
        return _EMPTY
    # Imported here, so that `import constrained` stays fast.
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    width = shutil.get_terminal_size((_WIDTH, 0)).columns

    def drawn(columns: Sequence[_Column]) -> Table:
        made = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        made.add_column("tensor", overflow="fold", max_width=max(16, width // 2))
        for column in columns:
            # Views are long.
            most = max(16, width // 3) if column.heading == "constraint" else None
            made.add_column(column.heading, overflow="fold", max_width=most)
        for label, some in groups:
            made.add_row(*map(Text, (label, *(column.cell(some) for column in columns))))
        return made

    text = StringIO()
    console, endless = Console(file=text, width=width), Console(width=10**6)
    groups, shown = grouped(rows), _shown(rows)
    left = shown
    while left:
        # A single column that does not fit is folded.
        fitting = (
            n for n in range(len(left), 1, -1) if endless.measure(drawn(left[:n])).maximum <= width
        )
        count = next(fitting, 1)
        console.print(drawn(left[:count]))
        console.print()
        left = left[count:]
    for line in (*_meanings(shown), *notes):
        console.print(Text(line))
    return "\n".join(map(str.rstrip, text.getvalue().splitlines())).strip("\n")


def as_html(rows: Sequence[Row], notes: Sequence[str]) -> str:
    """The table for a notebook."""
    if not rows:
        return f"<p>{_EMPTY}</p>"

    def line(cells: Iterable[str], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"

    shown = _shown(rows)
    head = line(("tensor", *(column.heading for column in shown)), "th")
    body = "".join(
        line((label, *(column.cell(some) for column in shown)), "td")
        for label, some in grouped(rows)
    )
    below = "<br>".join(map(html.escape, (*_meanings(shown), *notes)))
    return f"<table><thead>{head}</thead><tbody>{body}</tbody></table><p><small>{below}</small></p>"


def _shown(rows: Sequence[Row]) -> list[_Column]:
    return [column for column in _COLUMNS if any(map(column.is_known, rows))]


def _meanings(columns: Sequence[_Column]) -> list[str]:
    return [f"{column.heading}: {column.meaning}." for column in columns if column.meaning]


# ------------------------------------------------------------------------------- equal layers


def grouped(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Rows of equal layers together, with a name for each: ``layers.{0..11}.weight``.

    Layers are equal if they have one constraint, shape and class of module, and their paths differ
    in numbers only. They stand where the first of them stood.
    """
    alike: dict[Any, list[tuple[tuple[int, ...], Row]]] = {}
    for row in rows:
        texts = re.split(r"\d+", row.path)
        numbers = tuple(map(int, re.findall(r"\d+", row.path)))
        # A number with leading zeros is another name.
        name = row.path if "0" in _leading(row.path) else tuple(texts)
        alike.setdefault((row.constraint, row.shape, row.module, name), []).append((numbers, row))
    found: list[tuple[str, list[Row]]] = []
    for (*_, name), some in alike.items():
        if isinstance(name, str):
            found.append((name, [row for _, row in some]))
        else:
            found += _labelled(name, some)
    return found


def _leading(path: str) -> set[str]:
    return {number[0] for number in re.findall(r"\d+", path) if len(number) > 1}


def _labelled(
    texts: tuple[str, ...], some: list[tuple[tuple[int, ...], Row]]
) -> list[tuple[str, list[Row]]]:
    """Rows with a name that stands for all of their paths and no others, or several such groups."""
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
