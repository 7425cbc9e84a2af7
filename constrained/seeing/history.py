"""What a monitor has read, drawn step by step."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from constrained.constraint.plain_data import is_list, short
from constrained.seeing.monitor import Monitor
from constrained.seeing.reading import QUANTITIES
from constrained.seeing.sinks import Record, read_csv
from constrained.seeing.subject import axes

#: How many lines have colours of their own.
_COLOURS = 8

_PALE = "#b0b0b0"


def history(
    source: Monitor | Sequence[Record] | str | os.PathLike[str],
    quantity: str = "violation",
    *,
    ax: Any = None,
) -> Any:
    """What a monitor has read, step by step: the violation, or another quantity.

    The tensors with the largest last values have colours, all others are grey. Steps at which a
    number is NaN or infinite are marked above.

    Args:
        source: a `constrained.Monitor`, its records, or the path of the CSV file that it wrote.
        quantity: ``"violation"``, ``"drift"``, ``"sigma_max"``, ``"sigma_min"``, ``"condition"`` or
            ``"gradient_norm"``.
        ax: axes of matplotlib to draw into; a new figure by default.

    Returns:
        The axes.

    Raises:
        ValueError: if there is no such quantity, or nothing was read of it.
        FileNotFoundError: if there is no such file.
        TypeError: if the source is something else.
        ImportError: without matplotlib.

    Example:
        >>> from constrained import plot
        >>> axes = plot.history("runs/log.csv", "drift")                    # doctest: +SKIP
    """
    if quantity not in QUANTITIES:
        raise ValueError(
            f"history: quantity must be one of {', '.join(QUANTITIES)}, got {quantity!r}."
        )
    lines = _lines(source, quantity)
    ax = axes(ax)
    order = sorted(lines, key=lambda path: _last(lines[path]), reverse=True)
    coloured = order[:_COLOURS]
    finite = [y for line in lines.values() for y in line.values() if math.isfinite(y)]
    for path in [*order[_COLOURS:], *reversed(coloured)]:
        line = {step: y for step, y in lines[path].items() if math.isfinite(y)}
        style: dict[str, Any] = {"color": _PALE, "linewidth": 0.7}
        if path in coloured:
            style = {"color": f"C{coloured.index(path)}", "linewidth": 1.4, "label": path}
        marker = "o" if len(line) < 3 else None
        ax.plot(list(line), list(line.values()), marker=marker, markersize=3, **style)
    if len(order) > _COLOURS:
        ax.plot([], [], color=_PALE, linewidth=0.7, label=f"{len(order) - _COLOURS} others")
    if quantity == "violation":
        allowed = [y for line in _lines(source, "tolerance").values() for y in line.values()]
        ax.axhline(
            max(allowed), color="black", linestyle=":", linewidth=1, label="largest tolerance"
        )
        finite.append(max(allowed))
    _scale(ax, finite, quantity)
    broken = sorted({s for line in lines.values() for s, y in line.items() if not math.isfinite(y)})
    if broken:
        top = ax.get_xaxis_transform()
        ax.plot(
            *(broken, [0.97] * len(broken)),
            transform=top,
            marker="x",
            color="red",
            linestyle="",
            label="NaN or infinite",
            clip_on=False,
        )
    ax.set_xlabel("step")
    ax.set_ylabel(quantity.replace("_", " "))
    handles, labels = ax.get_legend_handles_labels()
    # The worst one first, as its line ends on top.
    rank = {path: i for i, path in enumerate(coloured)}
    pairs = sorted(zip(handles, labels, strict=True), key=lambda pair: rank.get(pair[1], 99))
    ax.legend(
        *([handle for handle, _ in pairs], [label for _, label in pairs]),
        loc="upper left",
        bbox_to_anchor=(1.01, 1),
        borderaxespad=0,
        fontsize="small",
        frameon=False,
    )
    return ax


def _last(line: Mapping[int, float]) -> float:
    number = line[max(line)]
    return math.inf if math.isnan(number) else number


def _scale(ax: Any, finite: Sequence[float], quantity: str) -> None:
    """A logarithmic scale where the numbers are of several magnitudes; with a place for zero."""
    positive = [y for y in finite if y > 0]
    if not positive:
        return
    if quantity == "violation" or max(positive) > 100 * min(positive):
        if min(finite) > 0:
            ax.set_yscale("log")
        else:
            ax.set_yscale("symlog", linthresh=min(positive))
            ax.set_ylim(0, 3 * max(positive))


def _lines(source: Any, quantity: str) -> dict[str, dict[int, float]]:
    """The numbers by path and step."""
    if isinstance(source, Monitor):
        records: Sequence[Record] = source.records
    elif isinstance(source, (str, os.PathLike)):
        records = read_csv(source)  # pyright: ignore[reportUnknownArgumentType] - a path of text
    else:
        records = source
        if not is_list(records) or not all(isinstance(r, Record) for r in records):
            raise TypeError(
                "history: the source is a Monitor, its records, or the path of its CSV file, got "
                f"{short(source)}."
            )
    found: dict[str, dict[int, float]] = {}
    for record in records:
        for path, reading in record.tensors.items():
            number: float | None = getattr(reading, quantity)
            if number is not None:
                found.setdefault(path, {})[record.step] = number
    if not found:
        raise ValueError(f"history: the {quantity} of no tensor was read.")
    return found
