"""The command ``constrained`` and its subcommands; any error is one line, and the exit code 2."""

from __future__ import annotations

import sys
import warnings
from typing import Annotated, Any, TextIO, cast

import typer
import typer.core

import constrained
from constrained.command_line import bench, catalogue, check, diff, doctor, run
from constrained.command_line.output import error_line

#: What typer raises for arguments that it does not understand.
_UsageError: Any = typer.BadParameter.__mro__[2]

#: The exit code of a process that Ctrl-C ended.
_INTERRUPTED = 130


class _Group(typer.core.TyperGroup):
    """Subcommands whose errors are one line on stderr, without a frame or a traceback."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                # Formulas, on a terminal that does not have their characters.
                cast(Any, stream).reconfigure(errors="replace")
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            try:
                code = super().main(*args, **{**kwargs, "standalone_mode": False})
            except _UsageError as error:
                error_line(error.format_message())
                code = 2
            except (KeyboardInterrupt, typer.Abort):
                code = _INTERRUPTED
            except OSError as error:
                # Without a file it is of stdout, such as on a full disk.
                place = error.filename or "The output cannot be written"
                error_line(f"{place}: {error.strerror or error}.")
                code = 2
        sys.exit(code if isinstance(code, int) else 0)


def _warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    del category, filename, lineno, file, line
    error_line(str(message), "Warning")


app = typer.Typer(
    cls=_Group, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False
)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="The version.")] = False,
) -> None:
    """Keep the weights of PyTorch models inside constraint sets."""
    if version:
        typer.echo(constrained.__version__)
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


app.command("list")(catalogue.list_constraints)
app.command("show")(catalogue.show)
app.command("check")(check.check)
app.command("schema")(catalogue.schema)
app.command("run")(run.run)
app.command("diff")(diff.diff)
app.command("bench")(bench.bench)
app.command("doctor")(doctor.doctor)


def main() -> None:
    """Run the command with the arguments of the process, and end the process."""
    app()
