"""``python -m examples.digits EXPERIMENT.yaml ...``: train with a constraint and without."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from examples.digits import data, figure, networks, outcome
from examples.digits.experiment import Experiment, ExperimentError, read
from examples.digits.training import History, Trainer

app = typer.Typer(add_completion=False)


@app.command()
def main(
    files: Annotated[list[Path], typer.Argument(help="Experiments, as YAML.", show_default=False)],
    epochs: Annotated[int | None, typer.Option(min=1, help="Instead of the file's.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Instead of the file's.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of one operation.")] = 1,
    out: Annotated[Path, typer.Option(help="Where pictures and metrics go.")] = Path("runs"),
) -> None:
    """Train the network of each experiment with its constraints and without, and compare."""
    # Matrices this small gain nothing from a second thread, and on a busy machine they lose.
    torch.set_num_threads(threads)
    console = Console()
    given = {"epochs": epochs, "seed": seed}
    changes = {key: value for key, value in given.items() if value is not None}
    try:
        # Every file is read, and every network built, before the first one is trained.
        prepared = [prepare(path, changes) for path in files]
        folders = make_folders(out, [experiment.name for experiment, _ in prepared])
    except ExperimentError as error:
        Console(stderr=True).print(f"Error: {error}", style="red", soft_wrap=True, markup=False)
        raise typer.Exit(2) from None
    for (experiment, trainers), folder in zip(prepared, folders, strict=True):
        run(experiment, trainers, console)
        histories = {label: trainer.history for label, trainer in trainers.items()}
        write(experiment, histories, folder, console)


def prepare(path: Path, changes: dict[str, int]) -> tuple[Experiment, dict[str, Trainer]]:
    """Read an experiment, change what the command line says, and build its networks."""
    experiment = read(path)
    training = dataclasses.replace(experiment.training, **changes)
    experiment = dataclasses.replace(experiment, training=training)
    digits = data.load(experiment.data, experiment.training.seed)
    try:
        models = networks.build(experiment, inputs=digits.train.shape[-1])
        judges = networks.measures(models)
        trainers = {
            label: Trainer(model, digits, experiment.training, judges[label])
            for label, model in models.items()
        }
    except ExperimentError as error:
        raise ExperimentError(f"{path}: {error}") from error
    return experiment, trainers


def make_folders(out: Path, names: list[str]) -> list[Path]:
    """A folder for each experiment."""
    for name in names:
        if names.count(name) > 1:
            raise ExperimentError(f"Two experiments have the name {name!r}; give them two names.")
        try:
            (out / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ExperimentError(f"{out / name}: {error.strerror}.") from None
    return [out / name for name in names]


def run(experiment: Experiment, trainers: dict[str, Trainer], console: Console) -> None:
    """Train all networks, in turns: what else the machine does then slows each of them alike."""
    progress = Progress(
        TextColumn("{task.description:13}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("epochs, test accuracy {task.fields[accuracy]:.3f}"),
        TimeRemainingColumn(),
        console=console,
    )
    epochs = experiment.training.epochs
    with progress:
        tasks = {
            label: progress.add_task(label, total=epochs, accuracy=trainer.history.accuracy[-1])
            for label, trainer in trainers.items()
        }
        for _ in range(epochs):
            for label, trainer in trainers.items():
                trainer.epoch()
                accuracy = trainer.history.accuracy[-1]
                progress.update(tasks[label], advance=1, accuracy=accuracy)


def write(
    experiment: Experiment, histories: dict[str, History], folder: Path, console: Console
) -> None:
    """Print the table; write the picture and the metrics."""
    picture, metrics = folder / "picture.png", folder / "metrics.json"
    figure.draw(histories, outcome.headline(experiment), picture)
    outcome.write_metrics(experiment, histories, metrics)
    console.print(outcome.table(experiment, histories))
    console.print(f"{picture}  {metrics}\n", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    app()
