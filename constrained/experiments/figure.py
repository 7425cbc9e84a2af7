"""The picture of an experiment: the test metric, singular values, violation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from constrained.experiments.outcome import CONSTRAINED, UNCONSTRAINED
from constrained.experiments.training import History

_COLOURS = {CONSTRAINED: "#0b6e99", UNCONSTRAINED: "#d1652b"}
# Below the rounding of float32: a violation of exactly 0 is drawn here.
_LEAST = 1e-8


def draw(
    histories: Mapping[str, History],
    title: str,
    measure: str,
    baseline: float | None,
    matrix: str | None,
    path: Path,
) -> None:
    """Draw the histories of the networks into one picture and write a PNG.

    Args:
        histories: by the labels of the networks.
        title: above the picture.
        measure: what is drawn of the tests: ``"loss"`` or the name of a metric.
        baseline: what is reached without learning.
        matrix: the path of the matrix whose singular values are known; None: the training loss is
            drawn in their place.
        path: of the picture.
    """
    # Imported here, so that `import constrained` stays fast.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(13, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    panels: Any = figure.subplots(1, 3)
    tested, middle, violation = panels
    for label, history in histories.items():
        colour = _COLOURS[label]
        tested.plot(history.test.get(measure, []), color=colour, label=label)
        if matrix is None:
            epochs = range(1, len(history.loss) + 1)
            middle.plot(epochs, history.loss, color=colour, label=label)
        else:
            _singular_values(middle, label, history)
        drawn = [max(value, _LEAST) for value in history.violation]
        violation.plot(drawn, color=colour, label=label, linewidth=1)
    if baseline is not None:
        tested.axhline(baseline, color="black", linestyle=":", linewidth=1, label="baseline")
    tested.set(title=f"{measure} on the test set", xlabel="epoch")
    tested.set_ylim(0, 1 if measure == "accuracy" else None)
    if matrix is None:
        middle.set(title="training loss", xlabel="epoch", ylim=(0, None))
    else:
        middle.set(title=f"singular values of {matrix}", xlabel="index", ylim=(0, None))
    violation.set(title="largest violation", xlabel="optimizer step", yscale="log")
    for axes in panels:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, x=0.01, horizontalalignment="left")
    figure.savefig(path, dpi=120)


def _singular_values(axes: Any, label: str, history: History) -> None:
    known = history.singular_values
    if label == CONSTRAINED:
        axes.plot(known["before"], color="black", linestyle=":", zorder=3, label="before")
    if "after" in known:
        axes.plot(known["after"], color=_COLOURS[label], label=f"after, {label}")
