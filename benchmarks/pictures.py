"""Pictures of the results."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.first import races
from benchmarks.targets import measured, verdicts
from constrained import names

OURS, PALE, MET, MISSED = "#1f6f8b", "#e3e5e8", "#2e8b57", "#c2553d"
#: The colour and the marker of each peer.
LIBRARIES = {
    "torchlip": ("#8e5ea2", "D"),
    "torch": ("#e07b39", "o"),
    "geotorch": ("#c0392b", "s"),
    "geoopt": ("#3d9970", "^"),
    "20 log steps": ("#7f8c8d", "v"),
}


def against_peers() -> Figure:
    """Every row in which a peer takes part: the times of all, relative to the fastest of ours."""
    results = measured()
    found = sorted(races(results), key=lambda race: race.here / race.there)
    figure = Figure(figsize=(10, 0.22 * len(found) + 1.4), layout="constrained")
    axes = figure.subplots()
    for i, race in enumerate(found):
        axes.axhline(i, color=PALE, linewidth=0.6, zorder=0)
        for name, (_, ratio) in results[race.what].items():
            library = next((each for each in LIBRARIES if name.startswith(each)), None)
            if library is not None:
                color, marker = LIBRARIES[library]
                axes.plot(ratio / race.here, i, marker, color=color, markersize=6, alpha=0.8)
    axes.axvline(1, color=OURS, linewidth=1.6)
    axes.set_yticks(range(len(found)), [race.what for race in found], fontsize=8)
    for label, race in zip(axes.get_yticklabels(), found, strict=True):
        label.set_color(MISSED if race.there < race.here else "black")
    axes.set_ylim(-0.7, len(found) - 0.3)
    axes.set_xscale("log")
    axes.set_xlim(left=0.5 * min(race.there / race.here for race in found))
    axes.set_xlabel("peer / fastest of ours (log scale; red: a peer is first)")
    handles = [
        Line2D([], [], color=color, marker=marker, linestyle="", label=library)
        for library, (color, marker) in LIBRARIES.items()
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False)
    axes.spines[["top", "right", "left"]].set_visible(False)
    return figure


def against_targets() -> Figure:
    """What was measured, in units of the target: left of 1 it is met."""
    found = list(verdicts(measured()))[::-1]
    figure = Figure(figsize=(11, 0.3 * len(found) + 1), layout="constrained")
    axes = figure.subplots()
    shares = [v.here / v.target.limit for v in found]
    for i, (v, share) in enumerate(zip(found, shares, strict=True)):
        color = MET if v.is_met else MISSED
        if share > 0:
            axes.barh(i, share, color=color)
        # In a column of its own, where no bar and no line can be.
        axes.annotate(
            f"{v.here:.3g} of {v.target.limit:.3g} {v.target.unit}",
            (1.01, i),
            xycoords=axes.get_yaxis_transform(),
            va="center",
            fontsize=8,
            color=color,
        )
    axes.set_yticks(range(len(found)), [v.target.what for v in found], fontsize=8)
    axes.set_ylim(-0.7, len(found) - 0.3)
    axes.set_xscale("log")
    axes.set_xlim(0.5 * min([*(x for x in shares if x > 0), 1]), 1.5 * max(shares))
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("measured / target (log scale; green: met; no bar: faster than the plain one)")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def catalogue_costs(shape: str = "256 x 256") -> Figure:
    """The ratio to the plain step of every constraint that a matrix of this shape can carry."""
    ratios = costs(shape)
    ordered = sorted(ratios, key=lambda name: ratios[name])
    figure = Figure(figsize=(8, 0.2 * len(ordered) + 1), layout="constrained")
    axes = figure.subplots()
    axes.barh(ordered, [ratios[name] for name in ordered], color=OURS)
    for i, name in enumerate(ordered):
        axes.annotate(
            f"{ratios[name]:.3g}",
            (ratios[name], i),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
        )
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlim(right=2 * max(ratios.values()))
    axes.tick_params(axis="y", labelsize=7)
    axes.set_ylim(-0.7, len(ordered) - 0.3)
    axes.set_title(f"Every constraint, weight {shape}, batch 32", fontsize=10)
    axes.set_xlabel("time of a training step, in plain steps (log scale; the line: a plain step)")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def costs(shape: str = "256 x 256") -> dict[str, float]:
    """The time of a training step under each constraint, in plain steps.

    Arguments that a row names are left out: ``low_rank(rank=16) 256 x 256`` is ``low_rank``, unless
    that was measured as well.
    """
    suffix = f" {shape}, batch 32"
    found: dict[str, float] = {}
    for row, contenders in measured().items():
        if row.endswith(suffix) and "constrained" in contenders:
            name, _, arguments = row.removesuffix(suffix).partition("(")
            if name in names() and (not arguments or name not in found):
                found[name] = contenders["constrained"][1]
    return found


def not_measured(shape: str = "256 x 256") -> list[str]:
    """The other names of the catalogue."""
    found = costs(shape)
    return [name for name in names() if name not in found]
