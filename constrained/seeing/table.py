"""A report as a table, in a terminal and in a notebook: equal layers share a row."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

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
    return tables.shape(rows[0].shape, known=rows[0].violation is not None)


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


def grouped(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Rows of equal layers together: of one constraint, shape and class of module."""
    return tables.grouped(rows, lambda row: (row.constraint, row.shape, row.module))
