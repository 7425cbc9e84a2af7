"""A report as a table, in a terminal and in a notebook: equal layers share a row."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from constrained.model import tables
from constrained.model.cost import COSTS
from constrained.seeing.measured import excess
from constrained.seeing.row import Row

_EMPTY = "No tensor is constrained."


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
    _Column("cost", _cost, _is_known("cost"), "what a training step takes beyond a plain one"),
)


def as_text(rows: Sequence[Row], notes: Sequence[str]) -> str:
    """The table in the width of the terminal; columns that do not fit are below the others."""
    return tables.as_text(*_cells(rows), notes=_below(rows, notes))


def as_html(rows: Sequence[Row], notes: Sequence[str]) -> str:
    """The table for a notebook."""
    return tables.as_html(*_cells(rows), notes=_below(rows, notes))


def _cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """The headings, and the text of each row under them."""
    shown = _shown(rows)
    cells = [[label, *(column.cell(some) for column in shown)] for label, some in grouped(rows)]
    return ["tensor", *(column.heading for column in shown)], cells


def _below(rows: Sequence[Row], notes: Sequence[str]) -> list[str]:
    if not rows:
        return [_EMPTY]
    told = [f"{column.heading}: {column.meaning}." for column in _shown(rows) if column.meaning]
    return [*told, *notes]


def _shown(rows: Sequence[Row]) -> list[_Column]:
    return [column for column in _COLUMNS if any(map(column.is_known, rows))]


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
