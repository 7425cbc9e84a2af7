"""``python -m tests.promises``: run the tests of the engine's promises, and write their table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pytest
import typer

from tests.promises.table import FOLDER, NOT_RUN, PROMISES, Outcomes, index

START, END = "<!-- table: generated -->", "<!-- end of table -->"

#: The index of the test files.
INDEX = FOLDER / "README.md"

app = typer.Typer(add_completion=False, no_args_is_help=True)


@app.command()
def engine(
    promises: Annotated[
        list[str] | None,
        typer.Argument(help="Ids such as E06; all by default.", show_default=False),
    ] = None,
    slow: Annotated[bool, typer.Option(help="Also the tests with other processes.")] = False,
    jobs: Annotated[int, typer.Option(min=0, help="Processes; needs pytest-xdist.")] = 0,
    table: Annotated[
        Path | None, typer.Option(help="Write what was seen into this Markdown file.")
    ] = None,
    write_index: Annotated[
        bool, typer.Option("--index", help="Run nothing: write the list of files, by subject.")
    ] = False,
) -> None:
    """Run the tests of the engine's promises (K1 to K8, E01 to E40)."""
    if write_index:
        write(index(), INDEX)
        return
    unknown = [p for p in promises or () if p.upper() not in PROMISES]
    if unknown:
        known = f"{next(iter(PROMISES))} to {list(PROMISES)[-1]}"
        typer.echo(f"Error: there is no promise {unknown[0]!r}; they are {known}.", err=True)
        raise typer.Exit(2)
    outcomes = Outcomes()
    arguments = [str(FOLDER), "-q", "-p", "no:cacheprovider"]
    if promises:
        arguments += ["-k", " or ".join(f"test_{p.lower()}_" for p in promises)]
    if not slow:
        arguments += ["-m", "not slow"]
    if jobs:
        arguments += ["-n", str(jobs)]
    code = pytest.main(arguments, plugins=[outcomes])
    if table is not None:
        write(outcomes.table(), table)
    raise typer.Exit(int(code))


def write(table: str, path: Path) -> None:
    """Put the table between its marks in a Markdown file.

    A promise without a test in this run keeps its row.
    """
    text = path.read_text("utf-8")
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        typer.echo(f"Error: {path} has no lines {START!r} and {END!r}.", err=True)
        raise typer.Exit(2)
    old = {_key(line): line for line in rest[: rest.index(END)].splitlines()}
    rows = [
        old.get(_key(line), line) if line.endswith(f"{NOT_RUN} |") else line
        for line in table.splitlines()
    ]
    path.write_text("\n".join([f"{before}{start}", *rows, f"{end}{after}"]), "utf-8")


def _key(line: str) -> str:
    return line.split("|")[1].strip() if "|" in line else ""


if __name__ == "__main__":
    app()
