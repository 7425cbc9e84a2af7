"""An experiment from its file to its folder: prepare, train, write."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from constrained.checkpoint.save import save
from constrained.constraint.errors import ConfigErrors, raise_all
from constrained.experiments import figure, networks, optimizer, outcome
from constrained.experiments.copying import copying
from constrained.experiments.digits import digits
from constrained.experiments.experiment import (
    Experiment,
    ExperimentError,
    folder_of,
    read_experiment,
)
from constrained.experiments.iris import iris
from constrained.experiments.outcome import CONSTRAINED, UNCONSTRAINED
from constrained.experiments.parts import call, find, import_path
from constrained.experiments.random_state import RandomState
from constrained.experiments.task import Task
from constrained.experiments.training import History, Trainer
from constrained.model.plan import Plan
from constrained.seeing.monitor import Monitor
from constrained.seeing.report import report

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")

#: The data that are built in.
DATA: Mapping[str, Callable[..., Task]] = {"digits": digits, "copying": copying, "iris": iris}

#: What a run writes into the folder of its experiment.
FILES = (
    *("experiment.yaml", "plan.txt", "report.txt", "metrics.json", "metrics.csv", "picture.png"),
    *("monitor.csv", f"{CONSTRAINED}.safetensors", f"{UNCONSTRAINED}.safetensors"),
)


@dataclass(frozen=True)
class Outcome:
    """What a run has left.

    Attributes:
        folder: where its files are.
        metrics: what ``metrics.json`` holds.
        models: the trained networks: ``"constrained"``, and ``"unconstrained"`` if it was compared.
        stopped: for each network whose training ended early: why.
    """

    folder: Path
    metrics: Mapping[str, Any]
    models: Mapping[str, nn.Module]
    stopped: Mapping[str, str]


@dataclass
class Prepared:
    """An experiment whose networks are built, and not yet trained.

    Attributes:
        experiment: what is trained.
        task: its data.
        plan: of the constraints.
        trainers: of the networks, by their labels.
        device: where the networks are.
    """

    experiment: Experiment
    task: Task
    plan: Plan
    trainers: Mapping[str, Trainer]
    device: torch.device


def prepare(
    path: str | os.PathLike[str],
    *,
    epochs: int | None = None,
    seed: int | None = None,
    device: str = "cpu",
) -> Prepared:
    """Read an experiment, load its data and build its networks.

    The modules of the import paths under ``data``, ``model`` and ``optimizer`` are imported, the
    working directory first; nothing else in the file runs code.

    Args:
        path: of the file.
        epochs: in place of those in the file.
        seed: in place of the one in the file.
        device: where the networks are.

    Raises:
        ExperimentError: if one thing is wrong with the experiment.
        ConfigErrors: of several such errors.
    """
    check_installed()
    experiment = read_experiment(path, epochs=epochs, seed=seed)
    try:
        place = _device(device)
        with import_path():
            return _prepare(experiment, place)
    except (ExperimentError, ConfigErrors) as error:
        found = error.exceptions if isinstance(error, ConfigErrors) else [error]
        raise_all(f"{path} cannot be run", [_in_file(path, each) for each in found])
        raise


def check_installed() -> None:
    """Raise an `ExperimentError` if a package is missing that every run needs."""
    missing = [name for name in ("jsonschema", "matplotlib") if find_spec(name) is None]
    if missing:
        raise ExperimentError(
            f"An experiment needs {' and '.join(missing)}: pip install "
            "'constrained-layers[experiments]'."
        )


def _in_file(path: str | os.PathLike[str], error: Exception) -> ExperimentError:
    named = ExperimentError(f"{path}: {error}")
    named.__cause__ = error.__cause__
    return named


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ExperimentError(f"the device {name!r}: {str(error).splitlines()[0]}") from error
    return device


def _prepare(experiment: Experiment, device: torch.device) -> Prepared:
    seed = experiment.training.seed
    failed: list[Exception] = []
    with RandomState(seed).entered():
        task = _tried(failed, _task, experiment)
    with RandomState(seed).entered():
        if task is None:
            _tried(failed, networks.check, experiment)
        model = task and _tried(failed, networks.build, experiment, task, device)
        if task is None or model is None:
            # What does not depend on what failed is checked as well.
            _tried(failed, optimizer.check, experiment)
            raise ConfigErrors("The experiment cannot be run", failed)
        plan, errors = networks.constrained(model, experiment)
        models = {CONSTRAINED: model}
        if experiment.compare and not errors:
            models[UNCONSTRAINED] = networks.twin_of(model)
    judge = networks.Judge(model)
    trainers: dict[str, Trainer] = {}
    for label, network in models.items():
        try:
            trainers[label] = Trainer(network, task, experiment, judge, device)
        except ExperimentError as error:
            errors.append(error)
            break
    raise_all("The experiment cannot be run", errors)
    return Prepared(experiment, task, plan, trainers, device)


def _tried(errors: list[Exception], step: Callable[..., T], *arguments: Any) -> T | None:
    """What a step returns; None, and its error in the list, if it cannot be done."""
    try:
        return step(*arguments)
    except ExperimentError as error:
        errors.append(error)
        return None


def _task(experiment: Experiment) -> Task:
    part = experiment.data
    function = find("data", part.name, DATA)
    returned = call("data", part, function, offered={"seed": experiment.training.seed})
    try:
        return Task.of(returned)
    except ValueError as error:
        raise ExperimentError(f"data: {part.name!r} is of no use: {error}") from error


def run(
    path: str | os.PathLike[str],
    *,
    epochs: int | None = None,
    seed: int | None = None,
    threads: int = 1,
    out: str | os.PathLike[str] = "runs",
    device: str = "cpu",
    console: Console | None = None,
) -> Outcome:
    """Train the model of an experiment with its constraints, and compare if the file says so.

    The same file gives the same numbers, on the same machine and versions; the global random
    numbers of the program are left as they are. Into ``out/<name>/`` go: ``experiment.yaml``, with
    every default and change, which can be run again; ``plan.txt``; ``metrics.json``, and epoch by
    epoch ``metrics.csv``; ``report.txt``; ``picture.png``; ``constrained.safetensors`` (for
    `constrained.load`) and ``unconstrained.safetensors``; and ``monitor.csv``, if it is monitored.

    Args:
        path: of the file: YAML, JSON or TOML.
        epochs: in place of those in the file.
        seed: in place of the one in the file.
        threads: of one operation of torch; more than one pays for large matrices only.
        out: where the folder of the experiment goes.
        device: where the networks are, such as ``"cuda"``.
        console: where progress and the table are printed; by default nowhere.

    Returns:
        What was measured, and the networks.

    Raises:
        ExperimentError: if one thing is wrong with the experiment; nothing was written.
        ConfigErrors: of several such errors.
        KeyboardInterrupt: after Ctrl-C; what was measured until then is in the folder.

    Example:
        >>> from constrained.experiments import run
        >>> outcome = run("examples/iris.yaml", epochs=1)                   # doctest: +SKIP
        >>> outcome.metrics["networks"]["constrained"]["test_accuracy"]     # doctest: +SKIP
        0.8
    """
    with using_threads(threads):
        prepared = prepare(path, epochs=epochs, seed=seed, device=device)
        return carry_out(prepared, folder_of(out, prepared.experiment), console)


@contextmanager
def using_threads(threads: int) -> Generator[None]:
    """A block in which an operation of torch uses so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def carry_out(prepared: Prepared, folder: Path, console: Console | None = None) -> Outcome:
    """Train the networks of a prepared experiment, and write what comes out into its folder.

    If training is interrupted, or the user's code raises an error, what was measured until then is
    written before that goes on.
    """
    from rich.console import Console

    console = console or Console(quiet=True)
    if any((folder / name).exists() for name in FILES):
        sentence = f"{folder} holds an earlier run, which is overwritten."
        console.print(sentence, soft_wrap=True, markup=False, highlight=False)
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
    outcome.write_experiment(prepared.experiment, folder)
    (folder / "plan.txt").write_text(f"{prepared.plan}\n", "utf-8")
    for sentence in prepared.plan.warnings:
        console.print(f"Warning: {sentence}", soft_wrap=True, markup=False, highlight=False)
    monitor = None
    if prepared.experiment.monitor is not None:
        trainer = prepared.trainers[CONSTRAINED]
        monitor = Monitor(
            trainer.model, every=prepared.experiment.monitor, to=folder / "monitor.csv"
        )
        trainer.monitor = monitor
    try:
        with import_path():
            _train(prepared, console)
    except BaseException:
        if all(trainer.history.test for trainer in prepared.trainers.values()):
            _write(prepared, folder, monitor, interrupted=True)
        raise
    result = _write(prepared, folder, monitor, interrupted=False)
    histories = _histories(prepared)
    console.print(outcome.table(prepared.experiment, prepared.task, histories))
    for label, sentence in result.stopped.items():
        console.print(
            f"Training of the {label} network ended {sentence}",
            style="red",
            soft_wrap=True,
            markup=False,
            highlight=False,
        )
    written = ", ".join(name for name in FILES if (folder / name).exists())
    console.print(f"{folder}: {written}\n", soft_wrap=True, highlight=False, markup=False)
    return result


def _histories(prepared: Prepared) -> dict[str, History]:
    return {label: trainer.history for label, trainer in prepared.trainers.items()}


def _train(prepared: Prepared, console: Console) -> None:
    """Train all networks, in turns: what else the machine does then slows each of them alike."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    name = [*prepared.task.measures()][-1]
    epochs = prepared.experiment.training.epochs
    progress = Progress(
        TextColumn("{task.description:13}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(f"epochs, test {name} {{task.fields[reached]:.3f}}"),
        TimeRemainingColumn(),
        console=console,
    )
    for trainer in prepared.trainers.values():
        trainer.begin()
    with progress:
        tasks = {
            label: progress.add_task(label, total=epochs, reached=trainer.history.test[name][-1])
            for label, trainer in prepared.trainers.items()
        }
        for _ in range(epochs):
            for label, trainer in prepared.trainers.items():
                trainer.epoch()
                history = trainer.history
                done, reached = len(history.loss), history.test[name][-1]
                progress.update(tasks[label], completed=done, reached=reached)


def _write(
    prepared: Prepared, folder: Path, monitor: Monitor | None, *, interrupted: bool
) -> Outcome:
    """Write all files of the folder that are not there yet."""
    experiment, task, trainers = prepared.experiment, prepared.task, prepared.trainers
    histories = _histories(prepared)
    data = outcome.metrics(experiment, task, histories, prepared.device, interrupted)
    outcome.write_metrics(data, folder)
    model = trainers[CONSTRAINED].model
    written = report(model, start=monitor.start if monitor else None)
    (folder / "report.txt").write_text(f"{written}\n", "utf-8")
    if experiment.save:
        for label, trainer in trainers.items():
            save(trainer.model, folder / f"{label}.safetensors")
    measure = [*task.measures()][-1]
    figure.draw(
        histories,
        outcome.headline(experiment),
        measure,
        task.baselines.get(measure),
        trainers[CONSTRAINED].judge.matrix,
        folder / "picture.png",
    )
    models = {label: trainer.model for label, trainer in trainers.items()}
    stopped = {label: h.stopped for label, h in histories.items() if h.stopped}
    return Outcome(folder, data, models, stopped)
