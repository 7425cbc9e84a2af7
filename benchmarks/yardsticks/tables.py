"""Tables and pictures of the yardsticks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from benchmarks.yardsticks.measure import Attempt
from benchmarks.yardsticks.methods import METHODS

HEADINGS = ("method", "rate", "seconds", "evaluations", "seconds", "evaluations", "last gap")


@dataclass(frozen=True)
class Verdict:
    """Who was first on a problem, of those who came to the last target.

    Attributes:
        problem: its name and size.
        ours: the first of this library's.
        peer: the first of the others that take any loss.
        special: the first that was made for the problem.
    """

    problem: str
    ours: Attempt | None
    peer: Attempt | None
    special: Attempt | None

    @property
    def is_first(self) -> bool:
        """Whether ours was before every method that takes any loss: the target."""
        return _seconds(self.ours) < _seconds(self.peer)

    @property
    def is_first_of_all(self) -> bool:
        """Whether ours was before the methods made for the problem too."""
        return self.is_first and _seconds(self.ours) < _seconds(self.special)


def grouped(attempts: Sequence[Attempt]) -> dict[tuple[str, str], list[Attempt]]:
    """Attempts by problem and size, the fastest first."""
    groups: dict[tuple[str, str], list[Attempt]] = {}
    for attempt in attempts:
        groups.setdefault((attempt.problem, attempt.size), []).append(attempt)
    return {of: sorted(group, key=_order) for of, group in groups.items()}


def largest(attempts: Sequence[Attempt]) -> list[Attempt]:
    """Those on each problem at its largest size, which is run last."""
    last = {a.problem: a.size for a in attempts}
    return [a for a in attempts if a.size == last[a.problem] and "Higham" not in a.problem]


def verdicts(attempts: Sequence[Attempt]) -> Iterator[Verdict]:
    """One for each problem."""
    special = {m.name for m in METHODS if not m.takes_any_loss}
    for (problem, size), group in grouped(attempts).items():
        solved = [a for a in group if a.is_solved]
        ours = [a for a in solved if a.method.startswith("constrained") and a.method not in special]
        peers = [a for a in solved if not a.method.startswith("constrained")]
        yield Verdict(
            f"{problem}, {size}",
            next(iter(ours), None),
            next((a for a in peers if a.method not in special), None),
            next((a for a in solved if a.method in special), None),
        )


def markdown(attempts: Sequence[Attempt]) -> str:
    """The table of every method on every problem."""
    lines: list[str] = []
    for (problem, size), group in grouped(attempts).items():
        first, last = group[0].targets
        lines += [
            f"### {problem[0].upper()}{problem[1:]}, {size}",
            "",
            f"| method | rate | s to {first:g} | evaluations | s to {last:g} | evaluations "
            "| last gap |",
            "|---|---|---|---|---|---|---|",
            *(f"| {' | '.join(row)} |" for row in _rows(group)),
            "",
        ]
    return "\n".join(lines)


def markdown_targets(attempts: Sequence[Attempt]) -> str:
    """The table of who was first, at the largest sizes."""
    lines = [
        "| problem | ours | best peer for any loss | made for the problem | first for any loss "
        "| first of all |",
        "|---|---|---|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in _verdict_rows(attempts, "**missed**")),
    ]
    return "\n".join(lines) + "\n"


def show(group: Sequence[Attempt]) -> None:
    """Print the attempts on a problem."""
    first, last = group[0].targets
    title = f"{group[0].problem}, {group[0].size}: to a gap of {first:g}, and of {last:g}"
    table = Table(title=title)
    for i, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="right" if i else "left")
    for row in _rows(sorted(group, key=_order)):
        table.add_row(*row)
    Console().print(table)


def show_targets(attempts: Sequence[Attempt]) -> None:
    """Print who was first."""
    table = Table(title="Seconds to the last gap, at the largest sizes: is one of ours first?")
    headings = ("problem", "ours", "best peer", "made for the problem", "any loss", "of all")
    for heading in headings:
        table.add_column(heading)
    for row in _verdict_rows(attempts, "missed"):
        table.add_row(*row)
    Console().print(table)


def picture(attempts: Sequence[Attempt]) -> Figure:
    """Gap over seconds, a picture for each problem; ours are thick."""
    groups = grouped(largest(attempts))
    methods = sorted({a.method for group in groups.values() for a in group})
    ours = [m for m in methods if m.startswith("constrained")]
    peers = [m for m in methods if m not in ours]
    style = {m: {"color": f"C{i % 10}", "linewidth": 2.4} for i, m in enumerate(ours)}
    dashes = ("-", "--", ":")
    for i, m in enumerate(peers):
        style[m] = {"color": f"C{i % 10}", "linewidth": 1.0, "linestyle": dashes[i // 10 + 1]}
    columns = 3
    rows = math.ceil(len(groups) / columns)
    figure = Figure(figsize=(4.4 * columns, 3.2 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    handles = {}
    for axes, ((problem, size), group) in zip(grid, groups.items(), strict=False):
        for a in sorted(group, key=lambda a: a.method.startswith("constrained")):
            gaps = [max(gap, a.targets[-1] / 10) for gap in a.gaps]
            # A method that evaluates the loss but once is a point.
            marker = "o" if len(gaps) == 1 else None
            (line,) = axes.loglog(a.seconds, gaps, marker=marker, markersize=4, **style[a.method])
            handles[a.method] = line
        for target in group[0].targets:
            axes.axhline(target, color="black", linewidth=0.6, linestyle=":")
        axes.set_title(f"{problem}, {size}", fontsize=9)
        axes.set_xlabel("seconds")
        axes.set_ylabel("gap")
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid[len(groups) :]:
        axes.remove()
    names = [m for m in (*ours, *peers) if m in handles]
    figure.legend(
        [handles[m] for m in names],
        names,
        loc="outside lower center",
        ncols=4,
        fontsize=8,
        frameon=False,
    )
    return figure


def _rows(group: Sequence[Attempt]) -> Iterator[tuple[str, ...]]:
    for a in group:
        first, last = a.targets
        yield (
            a.method,
            f"{a.rate:g}" if a.rate else "",
            _figure(a.seconds_to(first)),
            _figure(a.evaluations_to(first)),
            _figure(a.seconds_to(last)),
            _figure(a.evaluations_to(last)),
            "" if a.is_solved else a.failure.partition(":")[0] or f"{a.last_gap:.1e}",
        )


def _verdict_rows(attempts: Sequence[Attempt], missed: str) -> Iterator[tuple[str, ...]]:
    for v in verdicts(largest(attempts)):
        yield (
            v.problem,
            _named(v.ours),
            _named(v.peer),
            _named(v.special) if v.special else "",
            "met" if v.is_first else missed,
            "met" if v.is_first_of_all else missed,
        )


def _order(a: Attempt) -> tuple[float, ...]:
    return (*(a.seconds_to(target) for target in reversed(a.targets)), a.last_gap)


def _seconds(a: Attempt | None) -> float:
    return math.inf if a is None else a.seconds_to(a.targets[-1])


def _figure(x: float) -> str:
    return "" if x == math.inf else f"{x:.3g}"


def _named(a: Attempt | None) -> str:
    return "none arrived" if a is None else f"{_figure(_seconds(a))} s, {a.method}"
