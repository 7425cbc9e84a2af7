"""``run``: experiments from their files to their folders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from constrained.command_line.models import Imports, import_all
from constrained.command_line.output import Json, error_line, print_json
from constrained.constraint.errors import ConfigErrors


def run(
    files: Annotated[
        list[Path], typer.Argument(help="Experiments, as YAML, JSON or TOML.", show_default=False)
    ],
    epochs: Annotated[int | None, typer.Option(min=1, help="Instead of the file's.")] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**32 - 1, help="Instead of the file's.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of one operation.")] = 1,
    device: Annotated[str, typer.Option(help="Where the networks are, such as cuda.")] = "cpu",
    out: Annotated[Path, typer.Option(help="Where the folders of results go.")] = Path("runs"),
    imports: Imports = None,
    as_json: Json = False,
) -> None:
    """Train models with constraints, as experiments in files say.

    Modules that an experiment names under data, model or optimizer (package.module:function) are
    imported, so run only files that you trust as you would a program. Constraints never run code.

    The exit code is 2 if an experiment cannot be run, 1 if a loss or a gradient ended as NaN or
    infinite, and 130 after Ctrl-C, which leaves what was measured until then.
    """
    # Imported here, so that other commands start without them.
    from constrained.experiments import ExperimentError
    from constrained.experiments.experiment import folder_of
    from constrained.experiments.parts import told
    from constrained.experiments.runner import Prepared, carry_out, prepare, using_threads

    import_all(imports)
    console = Console(quiet=as_json)
    running = "before training"
    metrics: dict[str, Any] = {}
    stopped = False
    prepared: list[Prepared] = []
    errors: list[Exception] = []
    try:
        # Matrices of small networks gain nothing from a second thread, and on a busy machine lose.
        with using_threads(threads):
            # Every file is read, and every network built, before the first one is trained.
            for file in files:
                try:
                    prepared.append(prepare(file, epochs=epochs, seed=seed, device=device))
                except ConfigErrors as several:
                    errors += several.exceptions
                except ExperimentError as error:
                    errors.append(error)
            names = [each.experiment.name for each in prepared]
            for name in dict.fromkeys(names):
                if names.count(name) > 1:
                    sentence = f"Several experiments have the name {name!r}; rename all but one."
                    errors.append(ExperimentError(sentence))
            if errors:
                raise ConfigErrors("The experiments cannot be run", errors)
            folders = [folder_of(out, each.experiment) for each in prepared]
            for each, folder in zip(prepared, folders, strict=True):
                running = f"while training {each.experiment.name}; what was measured is in {folder}"
                try:
                    outcome = carry_out(each, folder, console)
                except Exception as error:
                    # Of the model, the data or the optimizer, or of a folder that is not writable.
                    raise ExperimentError(f"{running}: {told(error)}.") from error
                metrics[each.experiment.name] = outcome.metrics
                stopped |= bool(outcome.stopped)
    except ConfigErrors as several:
        for error in several.exceptions:
            error_line(str(error))
        raise typer.Exit(2) from None
    except ExperimentError as error:
        error_line(str(error))
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        error_line(f"{running}.", "Interrupted")
        raise typer.Exit(130) from None
    if as_json:
        print_json(metrics)
    raise typer.Exit(1 if stopped else 0)
