"""The picture of an experiment: accuracy, singular values, violation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from examples.digits.training import History

COLOURS = {"constrained": "#0b6e99", "unconstrained": "#d1652b"}
# Below the rounding of float32: a violation of exactly 0 is drawn here.
LEAST = 1e-8


def draw(histories: Mapping[str, History], title: str, path: Path) -> None:
    """Draw the histories of both networks side by side and write a PNG."""
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    accuracy, singular, violation = figure.subplots(1, 3)
    for label, history in histories.items():
        _accuracy(accuracy, label, history)
        _singular_values(singular, label, history)
        _violation(violation, label, history)
    accuracy.set(title="accuracy on the test set", xlabel="epoch", ylim=(0, 1))
    singular.set(title="singular values of the recurrent kernel", xlabel="index", ylim=(0, None))
    violation.set(title="largest violation", xlabel="optimizer step", yscale="log")
    accuracy.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (accuracy, singular, violation):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, x=0.01, horizontalalignment="left")
    figure.savefig(path, dpi=120)


def _accuracy(axes: Axes, label: str, history: History) -> None:
    axes.plot(history.accuracy, color=COLOURS[label], label=label)


def _singular_values(axes: Axes, label: str, history: History) -> None:
    if label == "constrained":
        before = history.singular_values["before"]
        axes.plot(before, color="black", linestyle=":", zorder=3, label="before, both")
    axes.plot(history.singular_values["after"], color=COLOURS[label], label=f"after, {label}")


def _violation(axes: Axes, label: str, history: History) -> None:
    drawn = [max(value, LEAST) for value in history.violation]
    axes.plot(drawn, color=COLOURS[label], label=label, linewidth=1)
