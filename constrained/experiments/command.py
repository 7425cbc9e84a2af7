"""``constrained run EXPERIMENT.yaml ...``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer


def run(
    files: Annotated[
        list[Path],
        typer.Argument(help="Experiments, as YAML, JSON or TOML.", show_default=False),
    ],
    epochs: Annotated[int | None, typer.Option(min=1, help="Instead of the file's.")] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**32 - 1, help="Instead of the file's.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of one operation.")] = 1,
    device: Annotated[str, typer.Option(help="Where the networks are, such as cuda.")] = "cpu",
    out: Annotated[
        Path, typer.Option(help="The folder of the experiment's folder.", file_okay=False)
    ] = Path("runs"),
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the metrics as JSON instead of text.")
    ] = False,
) -> None:
    """Train the model of each experiment with its constraints, and compare it without.

    Modules that an experiment names under data, model or optimizer (package.module:function) are
    imported, so run only files that you trust as you would a program. Constraints never run code.

    The exit code is 2 if an experiment cannot be run, 1 if a loss or a gradient ended as NaN or
    infinite, and 130 after Ctrl-C, which leaves what was measured until then.
    """
    # Imported here, so that other commands start without them.
    from rich.console import Console

    from constrained.constraint.errors import ConfigErrors
    from constrained.experiments.experiment import ExperimentError, folder_of
    from constrained.experiments.runner import carry_out, prepare, using_threads

    errors = Console(stderr=True, style="red", soft_wrap=True, markup=False, highlight=False)
    console = Console(quiet=as_json)
    running = "before training"
    metrics: dict[str, Any] = {}
    stopped = False
    try:
        # Matrices of small networks gain nothing from a second thread, and on a busy machine lose.
        with using_threads(threads):
            # Every file is read, and every network built, before the first one is trained.
            prepared = [prepare(f, epochs=epochs, seed=seed, device=device) for f in files]
            names = [each.experiment.name for each in prepared]
            for name in names:
                if names.count(name) > 1:
                    raise ExperimentError(
                        f"Two experiments have the name {name!r}; give them two names."
                    )
            folders = [folder_of(out, each.experiment) for each in prepared]
            for each, folder in zip(prepared, folders, strict=True):
                running = f"while training {each.experiment.name}; what was measured is in {folder}"
                outcome = carry_out(each, folder, console)
                metrics[each.experiment.name] = outcome.metrics
                stopped |= bool(outcome.stopped)
    except ConfigErrors as several:
        for error in several.exceptions:
            errors.print(f"Error: {error}")
        raise typer.Exit(2) from None
    except ExperimentError as error:
        errors.print(f"Error: {error}")
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        errors.print(f"Interrupted {running}.")
        raise typer.Exit(130) from None
    if as_json:
        typer.echo(json.dumps(metrics, indent=2, ensure_ascii=False))
    raise typer.Exit(1 if stopped else 0)
