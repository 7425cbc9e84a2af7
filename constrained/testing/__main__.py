"""``python -m constrained.testing sphere``: try the laws on one constraint, list the faults."""

from __future__ import annotations

import difflib
import importlib
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from constrained import Constraint, get, names
from constrained.testing.faults import grouped
from constrained.testing.runner import LawFunction, Trial, laws, trials

#: How many of a fault's cases are listed.
_LISTED = 6

app = typer.Typer(add_completion=False)


@app.command()
def main(
    constraint: Annotated[
        str, typer.Argument(help="A registered name, or package.module:Class.", show_default=False)
    ],
    law: Annotated[
        list[str] | None, typer.Option(help="This law only; may be repeated.", show_default=False)
    ] = None,
    slow: Annotated[
        bool,
        typer.Option(
            "--slow", help="Also compile, and try the laws that take long on all arguments."
        ),
    ] = False,
) -> None:
    """Try the laws on one constraint. The exit code is 1 if one is broken, and 2 for a bad name."""
    cls = _class(constraint)
    chosen = [_law(name) for name in law] if law else laws()
    try:
        everything = trials(cls, chosen)
    except (TypeError, ValueError) as error:
        _fail(str(error))
    # A law that is asked for by name is tried on all cases.
    due = [trial for trial in everything if slow or law or not trial.is_slow]
    raise typer.Exit(1 if _report(due, len(everything) - len(due)) else 0)


def _report(due: list[Trial], slow: int) -> bool:
    """Run trials and print the outcome. Returns whether a law is broken."""
    console, began = Console(highlight=False, soft_wrap=True), time.perf_counter()
    broken: list[tuple[Trial, AssertionError]] = []
    exempt: Counter[tuple[str, str]] = Counter()
    tried = 0
    with console.status("") as status:
        for trial in due:
            if trial.exemption:
                exempt[trial.law.__name__, trial.exemption] += 1
                continue
            status.update(trial.law.__name__)
            tried += 1
            try:
                trial.run()
            except AssertionError as error:
                broken.append((trial, error))
    faults = grouped(broken)
    for fault in faults:
        console.print(f"[red]x {fault.law}[/red]: {escape(fault.sentence)}")
        for case in fault.cases[:_LISTED]:
            console.print(f"    {escape(str(case))}")
        if len(fault.cases) > _LISTED:
            console.print(f"    and {len(fault.cases) - _LISTED} more cases")
    for (name, reason), count in exempt.items():
        console.print(f"- {name} is declared not to hold (cases: {count}): {escape(reason)}")
    if slow:
        console.print(f"- slow cases left out, which --slow tries: {slow}")
    verdict = f"[red]faults: {len(faults)}[/red]" if faults else "[green]all laws hold[/green]"
    seconds = time.perf_counter() - began
    count = len({trial.law for trial in due})
    console.print(f"{verdict} (laws: {count}, cases: {tried}, {seconds:.1f} s)")
    return bool(faults)


def _class(name: str) -> type[Constraint]:
    """The class of a registered name, or of ``"package.module:Class"``."""
    path, colon, attribute = name.partition(":")
    if not colon:
        try:
            return get(name)
        except KeyError:
            _fail(f"there is no constraint {name!r}.{_nearest(name, names())}")
    # As under `python -m`, a file in the working directory can be imported.
    sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(path)
    except ImportError as error:
        _fail(f"{path!r} cannot be imported: {error}.")
    found = getattr(module, attribute, None)
    if not (isinstance(found, type) and issubclass(found, Constraint)):
        known = [
            key
            for key, value in vars(module).items()
            if isinstance(value, type) and issubclass(value, Constraint)
        ]
        _fail(f"{path} has no constraint {attribute!r}.{_nearest(attribute, known)}")
    return found


def _law(name: str) -> LawFunction:
    known = {law.__name__: law for law in laws()}
    if name not in known:
        _fail(f"there is no law {name!r}.{_nearest(name, known)}")
    return known[name]


def _nearest(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=3, cutoff=0.4)
    return f" The nearest names are {', '.join(close)}." if close else ""


def _fail(sentence: str) -> NoReturn:
    typer.echo(f"Error: {sentence}", err=True)
    raise typer.Exit(2)


if __name__ == "__main__":
    app()
