"""The data, the model and the optimizer of an experiment: found by name and called.

This is where an experiment runs code: the modules that its import paths name are imported.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from constrained.constraint.plain_data import short
from constrained.constraint.registry import did_you_mean
from constrained.experiments.experiment import ExperimentError, Part


def find(place: str, name: str, built_in: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    """What a part's name stands for.

    Args:
        place: of the part in the file.
        name: of one of those built in, or an import path.
        built_in: what is built in.

    Raises:
        ExperimentError: if there is no such function or class.
    """
    module_name, colon, attribute = name.partition(":")
    if name in built_in:
        return built_in[name]
    if not (module_name and colon and attribute):
        hint = did_you_mean(name, built_in) or _some(built_in)
        raise ExperimentError(
            f"{place}.name is {short(name)}, which is neither built in nor an import path, "
            f"'package.module:function'.{hint}"
        )
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ExperimentError(
            f"{place}.name: the module {module_name!r} cannot be imported: {error.msg}. It is "
            "looked for in the working directory, and where Python finds packages."
        ) from error
    except (Exception, SystemExit) as error:
        raise ExperimentError(
            f"{place}.name: the module {module_name!r} cannot be imported: {told(error)}."
        ) from error
    for step in attribute.split("."):
        members = [key for key in dir(found) if not key.startswith("_")]
        if not hasattr(found, step):
            raise ExperimentError(
                f"{place}.name: {getattr(found, '__name__', module_name)!r} has no {step!r}."
                f"{did_you_mean(step, members)}"
            )
        found = getattr(found, step)
    if not callable(found):
        raise ExperimentError(
            f"{place}.name: {name!r} is a {type(found).__name__}, where a function or a class is "
            "expected."
        )
    return found


def _some(names: Mapping[str, Any]) -> str:
    return f" Built in are {', '.join(names)}." if len(names) < 10 else ""


def call(
    place: str,
    part: Part,
    function: Callable[..., Any],
    *leading: Any,
    offered: Mapping[str, Any] | None = None,
) -> Any:
    """Call the function or class of a part with the arguments in the file.

    Args:
        place: of the part in the file.
        part: its name and arguments.
        function: what `find` found.
        leading: positional arguments before those in the file.
        offered: arguments that it gets if it takes some of that name, and the file has none.

    Raises:
        ExperimentError: if it does not take the arguments, or raises an error.
    """
    arguments = check(place, part, function, len(leading), offered or {})
    try:
        return function(*leading, **arguments)
    except (Exception, SystemExit) as error:
        raise ExperimentError(f"{place}: {_sentence(part.name, error)}") from error


def check(
    place: str,
    part: Part,
    function: Callable[..., Any],
    leading: int,
    offered: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The arguments that a part's function or class is called with.

    Args:
        place: of the part in the file.
        part: its name and arguments.
        function: what `find` found.
        leading: how many positional arguments it gets before them.
        offered: as in `call`; None if that is unknown, since the data cannot be had.

    Raises:
        ExperimentError: if it does not take the arguments.
    """
    known = _parameters(function)
    arguments = dict(part.arguments)
    if known is not None:
        arguments = {k: v for k, v in (offered or {}).items() if k in known} | arguments
        _check(place, part.name, known, arguments, leading, complete=offered is not None)
    return arguments


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter] | None:
    try:
        return dict(inspect.signature(function).parameters)
    except ValueError:
        # Some functions that are written in C have no signature.
        return None


def _check(
    place: str,
    name: str,
    known: Mapping[str, inspect.Parameter],
    arguments: Mapping[str, Any],
    leading: int,
    *,
    complete: bool,
) -> None:
    kinds = {p.kind for p in known.values()}
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    names = {key: p for key, p in list(known.items())[leading:] if p.kind in by_name}
    sentences: list[str] = []
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        for key in arguments:
            if key not in names:
                hint = did_you_mean(key, names) or f" It takes {', '.join(names) or 'none'}."
                sentences.append(f"{short(name)} has no argument {short(key)}.{hint}")
    empty = inspect.Parameter.empty
    missing = [key for key, p in names.items() if p.default is empty and key not in arguments]
    if missing and complete:
        sentences.append(
            f"{short(name)} lacks its argument{'s' * (len(missing) > 1)} "
            f"{', '.join(map(repr, missing))}: write {'them' if len(missing) > 1 else 'it'} under "
            f"{place}, as in '{missing[0]}: ...'."
        )
    if sentences:
        raise ExperimentError(f"{place}: {' '.join(sentences)}")


def _sentence(name: str, error: BaseException) -> str:
    """What a function raised; the message alone where the function checks its arguments."""
    module = traceback.extract_tb(error.__traceback__)[-1].filename
    if isinstance(error, ValueError) and Path(module).parent == Path(__file__).parent:
        return str(error)
    return f"{short(name)} raised {told(error)}."


def told(error: BaseException) -> str:
    """An error of foreign code in one line: its type, its message, and where it was raised."""
    message = " ".join(str(error).split())[:300].rstrip(".")
    if isinstance(error, ModuleNotFoundError) and error.name == "sklearn":
        return f"{message}: pip install 'constrained-layers[experiments]'"
    frames = traceback.extract_tb(error.__traceback__)
    # The innermost one outside of what is installed is the user's.
    own = [frame for frame in frames if "site-packages" not in frame.filename]
    foreign = [frame for frame in own if not frame.filename.startswith("<frozen")]
    place = foreign[-1] if len(foreign) > 1 else None
    where = f" (in {Path(place.filename).name}, line {place.lineno})" if place else ""
    return f"{type(error).__name__}{': ' if message else ''}{message}{where}"


@contextmanager
def import_path() -> Generator[None]:
    """A block in which modules of the working directory can be imported, as under ``python -m``."""
    here = str(Path.cwd())
    if here in sys.path or "" in sys.path:
        yield
        return
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)
