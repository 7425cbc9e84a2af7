"""What came out of an experiment: the table, the metrics and the other files of its folder."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from constrained.constraint.plain_data import is_list, is_mapping
from constrained.experiments.experiment import Experiment
from constrained.experiments.task import Task
from constrained.experiments.training import History

if TYPE_CHECKING:
    from rich.table import Table

#: The label of the network with constraints, and of the one without.
CONSTRAINED, UNCONSTRAINED = "constrained", "unconstrained"


def headline(experiment: Experiment) -> str:
    """Name and constraints in a line."""
    given = ", ".join(f"{target}: {_short(spec)}" for target, spec in _flat(experiment.constraints))
    return f"{experiment.name} ({given})"


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if is_mapping(value) and "name" not in value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _short(spec: Any) -> str:
    return json.dumps(spec) if is_mapping(spec) or is_list(spec) else str(spec)


def table(experiment: Experiment, task: Task, histories: Mapping[str, History]) -> Table:
    """One row per network, and one for what is reached without learning."""
    # Imported here, so that `import constrained` stays fast.
    from rich.markup import escape
    from rich.table import Table

    steps = len(histories[CONSTRAINED].violation) - 1
    caption = f"violation: over all {steps} optimizer steps"
    result = Table(
        title=escape(headline(experiment)),
        title_justify="left",
        caption=f"{caption}; ratio: of the seconds" if len(histories) > 1 else caption,
        caption_justify="left",
    )
    result.add_column("network", no_wrap=True)
    # The loss says little beside an accuracy, unless it is known what is to be expected.
    hidden = {"loss"} if task.metrics and "loss" not in task.baselines else set[str]()
    measures = [name for name in task.measures() if name not in hidden]
    headings = [*(f"test {name}" for name in measures), "largest violation", "s per epoch"]
    for heading in headings + ["ratio"] * (len(histories) > 1):
        result.add_column(heading, justify="right")
    reference = seconds_per_epoch(histories[UNCONSTRAINED]) if len(histories) > 1 else None
    for label, history in histories.items():
        seconds = seconds_per_epoch(history)
        ratio = seconds / reference if seconds and reference else None
        result.add_row(
            label,
            *(_cell(history.test[name], ".3f") for name in measures),
            _cell([max(history.violation)], ".1e"),
            _cell([seconds], ".2f"),
            *([_cell([ratio], ".2f")] if len(histories) > 1 else []),
        )
    if task.baselines:
        known = [task.baselines.get(name) for name in measures]
        result.add_row("baseline", *(_cell([number], ".3f") for number in known))
    return result


def _cell(numbers: list[Any], form: str) -> str:
    return format(numbers[-1], form) if numbers and numbers[-1] is not None else ""


def seconds_per_epoch(history: History) -> float | None:
    """The median, which a moment of load elsewhere on the machine does not move."""
    return statistics.median(history.seconds) if history.seconds else None


def metrics(
    experiment: Experiment,
    task: Task,
    histories: Mapping[str, History],
    device: torch.device,
    interrupted: bool,
) -> dict[str, Any]:
    """All that was measured, with all that it depends on, as data that JSON can hold.

    NaN and infinity, which JSON does not have, are text.
    """
    import constrained

    return _finite(
        {
            "experiment": experiment.to_dict(),
            "versions": {"constrained": constrained.__version__, "torch": torch.__version__},
            "threads": torch.get_num_threads(),
            "device": str(device),
            "interrupted": interrupted,
            "baselines": dict(task.baselines),
            "networks": {
                label: {
                    **{f"test_{name}": values[-1] for name, values in history.test.items()},
                    "largest_violation": max(history.violation),
                    "seconds_per_epoch": seconds_per_epoch(history),
                    "history": asdict(history),
                }
                for label, history in histories.items()
            },
        }
    )


def _finite(data: Any) -> Any:
    if is_mapping(data):
        return {key: _finite(value) for key, value in data.items()}
    if is_list(data):
        return [_finite(value) for value in data]
    return str(data) if isinstance(data, float) and not math.isfinite(data) else data


def write_metrics(data: Mapping[str, Any], folder: Path) -> None:
    """All as JSON, and epoch by epoch as CSV: one line for each network and epoch."""
    text = json.dumps(data, indent=1, allow_nan=False)
    (folder / "metrics.json").write_text(f"{text}\n", "utf-8")
    file = io.StringIO()
    lines = csv.writer(file, lineterminator="\n")
    names = [*next(iter(data["networks"].values()))["history"]["test"]]
    lines.writerow(
        ["network", "epoch", "train loss", *(f"test {name}" for name in names), "seconds"]
    )
    for label, network in data["networks"].items():
        history = network["history"]
        for epoch in range(len(history["test"][names[0]])):
            trained = [history[key][epoch - 1] if epoch else "" for key in ("loss", "seconds")]
            tested = [history["test"][name][epoch] for name in names]
            lines.writerow([label, epoch, trained[0], *tested, trained[1]])
    (folder / "metrics.csv").write_text(file.getvalue(), "utf-8")


def write_experiment(experiment: Experiment, folder: Path) -> None:
    """The experiment with every default, as a file that can be run again."""
    import yaml

    text = yaml.safe_dump(experiment.to_dict(), sort_keys=False, allow_unicode=True)
    (folder / "experiment.yaml").write_text(text, "utf-8")
