"""Who was first, ours or a peer: read from the results, in words."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.quality import Curve
from benchmarks.sweep import Trained
from benchmarks.targets import Measured

#: How the names of contenders begin. All others are measures, as the plain step is, or belong to
#: another set than the peers of their row.
PEERS = ("torch", "geotorch", "geoopt", "pymanopt", "20 log steps")
OURS = ("constrained", "orthogonal", "polar", "cayley", "exp")


@dataclass(frozen=True)
class Race:
    """The best of ours and the best peer.

    Attributes:
        what: what was measured.
        ours: our fastest contender.
        here: its figure; the less the better, infinity if it never arrived.
        peer: the fastest peer.
        there: its figure.
    """

    what: str
    ours: str
    here: float
    peer: str
    there: float

    @property
    def is_ours(self) -> bool:
        """Whether ours was first; nobody is where nobody arrived."""
        return self.here < self.there

    @property
    def first(self) -> str:
        """Who was first."""
        if self.here == self.there:
            return "nobody" if self.here == math.inf else f"{self.ours} and {self.peer}"
        return self.ours if self.is_ours else self.peer

    @property
    def ahead(self) -> float:
        """How many times the figure of the first the other's is."""
        low, high = sorted((self.here, self.there))
        return 1.0 if low == high else high / low


def race(what: str, figures: Mapping[str, float]) -> Race | None:
    """Who was first of the contenders; None unless both sides take part."""
    sides = [{n: x for n, x in figures.items() if n.startswith(side)} for side in (OURS, PEERS)]
    if not all(sides):
        return None
    ours, peer = (min(side, key=lambda name: side[name]) for side in sides)
    return Race(what, ours, figures[ours], peer, figures[peer])


def races(measured: Measured) -> list[Race]:
    """One for each row of the results of `make bench` in which a peer takes part.

    By the ratios to the first contender of the row, which is measured in turn with the others.
    """
    found = (race(row, {n: x for n, (_, x) in each.items()}) for row, each in measured.items())
    return [each for each in found if each is not None]


def races_of(curves: Sequence[Curve], figure: Callable[[Curve], float]) -> list[Race]:
    """One for each problem: who reached the target first, in medians over the seeds."""
    groups: dict[str, dict[str, list[float]]] = {}
    for curve in curves:
        groups.setdefault(curve.problem, {}).setdefault(curve.contender, []).append(figure(curve))
    medians = {
        problem: {name: statistics.median_low(found) for name, found in group.items()}
        for problem, group in groups.items()
    }
    found = (race(problem, group) for problem, group in medians.items())
    return [each for each in found if each is not None]


def in_words(found: Sequence[Race]) -> str:
    """How often ours was first, and then where a peer was, the farthest ahead first."""
    behind = sorted((r for r in found if r.there < r.here), key=lambda r: -r.ahead)
    even = sum(r.here == r.there for r in found)
    text = (
        f"A peer takes part in {len(found)} rows. Ours is first in "
        f"{sum(r.is_ours for r in found)} of them, a peer in {len(behind)}"
        + (f"; in {even} they are even." if even else ".")
    )
    lines = [f"- {r.what}: {r.peer}, {_times(r.ahead)} ahead of {r.ours}" for r in behind]
    return "\n".join([text, *(["", "A peer is first in:", "", *lines] if lines else [])])


def of_curves(curves: Sequence[Curve]) -> str:
    """Markdown: for each problem, who needed the fewest steps and the fewest seconds."""
    lines = ["| problem | fewest steps | fewest seconds |", "|---|---|---|"]
    by = (Curve.steps_to_target, Curve.seconds_to_target)
    for steps, seconds in zip(*(races_of(curves, figure) for figure in by), strict=True):
        lines.append(f"| {steps.what} | {_cell(steps, 'steps')} | {_cell(seconds, 's')} |")
    return "\n".join(lines)


def of_sweep(results: Iterable[Trained]) -> str:
    """Which constraints were no worse than none, and which cost most."""
    accuracy = {r.spec: statistics.mean(r.accuracies) for r in results}
    without = accuracy.pop("none")
    order = sorted(accuracy, key=lambda spec: -accuracy[spec])
    better = [f"`{spec}`" for spec in order if accuracy[spec] >= without]
    last = order[-1]
    return (
        f"Without a constraint {without:.1%} of the held-out digits are right. "
        + (f"No worse are {', '.join(better)}. " if better else "Every constraint is below. ")
        + f"Farthest below is `{last}`, by {without - accuracy[last]:.1%}."
    )


def _cell(found: Race, unit: str) -> str:
    if found.first == "nobody":
        return "nobody arrived"
    low, high = sorted((found.here, found.there))
    other = found.peer if found.is_ours else found.ours
    if low == high:
        return f"{found.first}: {low:.3g} {unit}"
    rest = "did not arrive" if high == math.inf else f"{high:.3g} {unit}"
    return f"**{found.first}**: {low:.3g} {unit} ({other}: {rest})"


def _times(ratio: float) -> str:
    return f"{ratio:.2f} times" if ratio < 10 else f"{ratio:.0f} times"
