"""``python -m benchmarks.gate [group ...]``: is anything slower than the committed results say?

Each row is measured again. Its ratio, our time over that of its first contender (mostly the
unconstrained model), is compared with the committed one. Ratios and not times, so that another
machine, or a busy one, gives nearly the same answer. The exit status is 1 if a row is slower.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.__main__ import GROUPS
from benchmarks.harness import RESULTS, Timing

#: The groups that are measured unless others are named: what a training or an evaluation loop does.
#: The other groups take longer, compile, or count bytes.
DEFAULT = ("reading", "calling", "evaluating", "training", "batches", "layers", "models")

#: How much slower than its committed ratio a row may be.
ALLOWED = 0.1

#: The names of contenders that are not this library begin like this.
OTHERS = ("plain", "one ", "torch", "geotorch", "geoopt")


@dataclass(frozen=True)
class Comparison:
    """One row of ours, measured twice.

    Attributes:
        row: what was done.
        contender: which of ours did it.
        committed: the committed ratio and its quartiles over the rounds.
        measured: the same of the new measurement.
        allowed: by how much the new ratio may exceed the committed one, as a fraction.
    """

    row: str
    contender: str
    committed: tuple[float, float, float]
    measured: tuple[float, float, float]
    allowed: float = ALLOWED

    @property
    def change(self) -> float:
        """By how much the ratio has grown, as a fraction of the committed one."""
        return self.measured[0] / self.committed[0] - 1

    @property
    def is_slower(self) -> bool:
        """Whether it has grown by more than is allowed, and by more than the rounds differ.

        Rounds differ by noise. A growth is taken for one only if three quarters of the new rounds
        are slower than three quarters of the committed ones.
        """
        return self.change > self.allowed and self.measured[1] > self.committed[2]


def compare(
    committed: Iterable[Timing], measured: Iterable[Timing], allowed: float = ALLOWED
) -> list[Comparison]:
    """Our rows of the new measurement beside the committed ones; what is new has none beside it."""
    before = {(t.row, t.contender): t for t in committed}
    return [
        Comparison(t.row, t.contender, _ratio(before[t.row, t.contender]), _ratio(t), allowed)
        for t in measured
        if not t.contender.startswith(OTHERS) and (t.row, t.contender) in before
    ]


def check(
    committed: Sequence[Timing],
    measure: Callable[[], Iterable[Timing]],
    allowed: float = ALLOWED,
    tries: int = 3,
) -> list[Comparison]:
    """Measure, and measure again as long as something seems slower, up to ``tries`` times.

    What else runs on the machine slows some rows and not others. Of each row the fastest of the
    measurements counts: a regression is in all of them.
    """
    best: dict[tuple[str, str], Comparison] = {}
    for _ in range(tries):
        for found in compare(committed, measure(), allowed):
            key = (found.row, found.contender)
            if key not in best or found.change < best[key].change:
                best[key] = found
        if not any(found.is_slower for found in best.values()):
            break
    return list(best.values())


def load(group: str, folder: Path = RESULTS) -> list[Timing]:
    """The committed results of a group."""
    return [Timing(**t) for t in json.loads((folder / f"{group}.json").read_text())["timings"]]


def show(comparisons: Iterable[Comparison]) -> Table:
    """The rows as a table, the slower ones marked."""
    table = Table(title="Ratio to the first contender of the row")
    for heading in ("row", "contender", "committed", "now", "change", ""):
        table.add_column(heading)
    for c in comparisons:
        now, change = f"{c.measured[0]:.3f}", f"{100 * c.change:+.1f} %"
        mark = "slower" if c.is_slower else ""
        table.add_row(c.row, c.contender, f"{c.committed[0]:.3f}", now, change, mark)
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure groups, print the table, and return 1 if a row is slower."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("groups", nargs="*", help=f"of {', '.join(GROUPS)}")
    parser.add_argument("--slower", type=float, default=ALLOWED, help="how much slower is allowed")
    parser.add_argument("--tries", type=int, default=3, help="measurements, before a row is slower")
    given = parser.parse_args(arguments)
    if unknown := set(given.groups) - set(GROUPS):
        parser.error(f"there is no group {min(unknown)!r}; there are {', '.join(GROUPS)}")
    torch.set_num_threads(1)
    found: list[Comparison] = []
    for group in given.groups or DEFAULT:

        def measure(group: str = group) -> list[Timing]:
            return [timing for part in GROUPS[group] for timing in part()]

        found += check(load(group), measure, given.slower, given.tries)
    Console(width=None if sys.stdout.isatty() else 160).print(show(found))
    slower = sum(c.is_slower for c in found)
    print(f"{slower} of {len(found)} rows are slower by more than {given.slower:.0%}.")
    return int(slower > 0)


def _ratio(timing: Timing) -> tuple[float, float, float]:
    first, third = timing.ratio_quartiles
    return timing.ratio, first, third


if __name__ == "__main__":
    sys.exit(main())
