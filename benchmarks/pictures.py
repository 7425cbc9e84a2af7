"""Pictures of the results."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.targets import measured, verdicts

OURS, PEER, MET, MISSED = "#1f6f8b", "#c9ccd1", "#2e8b57", "#c2553d"
#: Contenders that are measures, not competitors.
_MEASURES = ("plain", "one matrix product", "one batched product")


def against_peers(rows: Sequence[str] | None = None, columns: int = 3) -> Figure:
    """The ratio to the plain step, on a logarithmic scale: one panel a row of the results.

    Args:
        rows: names of rows; by default all training steps in which a peer takes part.
        columns: panels side by side.
    """
    results = measured()
    if rows is None:
        rows = [r for r in results if "batch 32" in r and len(_contenders(results[r])) > 1]
    lines = math.ceil(len(rows) / columns)
    figure = Figure(figsize=(4.4 * columns, 1.9 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes, row in zip(grid.flat, rows, strict=False):
        _bars(axes, row, _contenders(results[row]))
    for axes in list(grid.flat)[len(rows) :]:
        axes.set_visible(False)
    figure.supxlabel("time of a training step, in plain steps (log scale; shorter is better)")
    return figure


def against_targets() -> Figure:
    """What was measured, in units of the target: left of 1 it is met."""
    found = list(verdicts(measured()))[::-1]
    figure = Figure(figsize=(10, 0.34 * len(found) + 1), layout="constrained")
    axes = figure.subplots()
    shares = [max(v.here / v.target.limit, 0.02) for v in found]
    colors = [MET if v.is_met else MISSED for v in found]
    axes.barh(range(len(found)), shares, color=colors)
    for i, v in enumerate(found):
        axes.text(
            shares[i] * 1.06,
            i,
            f"{v.here:.3g} of {v.target.limit:.3g} {v.target.unit}",
            va="center",
        )
    axes.set_yticks(range(len(found)), [v.target.what for v in found], fontsize=8)
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlim(0.02, max(shares) * 6)
    axes.set_xlabel("measured / target (log scale; green: met)")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def catalogue_costs(shape: str = "256 x 256") -> Figure:
    """The ratio to the plain step of every constraint that a matrix of this shape can carry."""
    suffix = f" {shape}, batch 32"
    ratios = {
        row.removesuffix(suffix): contenders["constrained"][1]
        for row, contenders in measured().items()
        if row.endswith(suffix) and "(" not in row and set(contenders) == {"plain", "constrained"}
    }
    ordered = sorted(ratios, key=lambda name: ratios[name])
    figure = Figure(figsize=(8, 0.2 * len(ordered) + 1), layout="constrained")
    axes = figure.subplots()
    axes.barh(ordered, [ratios[name] for name in ordered], color=OURS)
    axes.set_xscale("log")
    axes.tick_params(axis="y", labelsize=7)
    axes.set_ylim(-1, len(ordered))
    axes.set_title(f"Every constraint, weight {shape}, batch 32")
    axes.set_xlabel("time of a training step, in plain steps (log scale)")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _contenders(row: dict[str, tuple[float, float]]) -> dict[str, float]:
    if "plain" not in row:
        return {}
    plain = row["plain"][0]
    return {name: ms / plain for name, (ms, _) in row.items() if name not in _MEASURES}


def _bars(axes: Axes, row: str, ratios: dict[str, float]) -> None:
    names = sorted(ratios, key=lambda name: ratios[name], reverse=True)
    axes.barh(
        names,
        [ratios[name] for name in names],
        color=[OURS if name.startswith("constrained") else PEER for name in names],
    )
    for i, name in enumerate(names):
        axes.text(ratios[name] * 1.08, i, f"{ratios[name]:.3g}", va="center", fontsize=8)
    axes.set_xscale("log")
    axes.set_xlim(min(1, min(ratios.values()) / 2), max(ratios.values()) * 4)
    axes.set_title(row, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
