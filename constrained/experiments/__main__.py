"""``python -m constrained.experiments EXPERIMENT.yaml ...``."""

from __future__ import annotations

import typer

from constrained.experiments.command import run

app = typer.Typer(add_completion=False)
app.command()(run)

if __name__ == "__main__":
    app(prog_name="python -m constrained.experiments")
