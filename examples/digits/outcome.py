"""What came out of an experiment: the table and the metrics file."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from rich.table import Table

from examples.digits.experiment import Experiment
from examples.digits.training import History


def headline(experiment: Experiment) -> str:
    """Name and constraints in a line."""
    given = ", ".join(f"{target}: {spec}" for target, spec in experiment.constraints.items())
    return f"{experiment.name} ({given})"


def table(experiment: Experiment, histories: Mapping[str, History]) -> Table:
    """One row per network."""
    steps = len(histories["constrained"].violation) - 1
    result = Table(
        title=headline(experiment),
        title_justify="left",
        caption=f"violation: over all {steps} optimizer steps; ratio: of the seconds",
        caption_justify="left",
    )
    result.add_column("network")
    for heading in ("test accuracy", "largest violation", "s per epoch", "ratio"):
        result.add_column(heading, justify="right", no_wrap=True)
    reference = seconds_per_epoch(histories["unconstrained"])
    for label, history in histories.items():
        seconds = seconds_per_epoch(history)
        result.add_row(
            label,
            f"{history.accuracy[-1]:.3f}",
            f"{max(history.violation):.1e}",
            f"{seconds:.2f}",
            f"{seconds / reference:.2f}",
        )
    return result


def seconds_per_epoch(history: History) -> float:
    """The median, which a moment of load elsewhere on the machine does not move."""
    return statistics.median(history.seconds)


def write_metrics(experiment: Experiment, histories: Mapping[str, History], path: Path) -> None:
    """All that was measured, with all that it depends on, as JSON."""
    metrics = {
        "experiment": experiment.to_dict(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "networks": {
            label: {
                "test_accuracy": history.accuracy[-1],
                "largest_violation": max(history.violation),
                "seconds_per_epoch": seconds_per_epoch(history),
                "history": asdict(history),
            }
            for label, history in histories.items()
        },
    }
    path.write_text(json.dumps(metrics, indent=1) + "\n", "utf-8")
