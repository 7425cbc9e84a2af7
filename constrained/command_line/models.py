"""Models and packages that a command line names by their import paths."""

from __future__ import annotations

import difflib
import importlib
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

from constrained.command_line.output import fail

#: The option for packages whose constraints are to be known.
Imports = Annotated[
    list[str] | None,
    typer.Option(
        "--import", metavar="PACKAGE", help="Import this package, which registers constraints."
    ),
]

#: The option for the model.
Model = typer.Option(
    "--model",
    metavar="PACKAGE.MODULE:FACTORY",
    help="What makes the model: a function or a class without arguments, or the model itself.",
)


def import_all(packages: Sequence[str] | None) -> None:
    """Import packages by their names, for the constraints that they register."""
    for package in packages or ():
        _import(package)


def model_of(path: str) -> nn.Module:
    """The model that an import path such as ``"package.module:factory"`` names."""
    module_path, colon, attribute = path.partition(":")
    if not (module_path and colon and attribute) or module_path.endswith(".py"):
        guess = f" Did you mean {_with_colon(path)!r}?" if _with_colon(path) else ""
        fail(f"A model is given as package.module:factory, got {path!r}.{guess}")
    found: Any = _import(module_path)
    for part in attribute.split("."):
        if not hasattr(found, part):
            close = difflib.get_close_matches(part, dir(found), n=1)
            guess = f" Did you mean {close[0]!r}?" if close else ""
            fail(f"{module_path} has no {attribute!r}.{guess}")
        found = getattr(found, part)
    if isinstance(found, nn.Module):
        return found
    if not callable(found):
        fail(f"{path} must be a model, or a function that makes one, got {type(found).__name__}.")
    try:
        made = found()
    except (Exception, SystemExit) as error:
        fail(f"{path}() raised {_raised(error)}")
    if not isinstance(made, nn.Module):
        fail(f"{path}() must return a torch.nn.Module, and returned {type(made).__name__}.")
    return made


def _with_colon(path: str) -> str:
    """``module:factory`` for ``module.py:factory`` or ``module.factory``; "" if unknown."""
    file, colon, attribute = path.partition(":")
    if file.endswith(".py") and colon:
        return f"{file.removesuffix('.py').replace('/', '.').strip('.')}:{attribute}"
    module, dot, attribute = path.rpartition(".")
    return f"{module}:{attribute}" if dot and module and attribute not in ("", "py") else ""


def _import(path: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path:
        # A script of the working directory, as for `python -m`.
        sys.path.insert(0, here)
    try:
        return importlib.import_module(path)
    except (Exception, SystemExit) as error:
        fail(f"{path!r} cannot be imported: {_raised(error)}")


def _raised(error: BaseException) -> str:
    """The type and the text of an error, and the line that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1]
    own = "importlib" in last.filename or last.filename == __file__
    where = "" if own else f" ({Path(last.filename).name}, line {last.lineno})"
    text = " ".join(str(error).split())[:300].rstrip(".")
    return f"{type(error).__name__}: {text}{where}."
