"""``doctor``: versions, devices, and what is in the way of constraints that should be there."""

from __future__ import annotations

import platform
import sys
import textwrap
import warnings
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Any

import torch
import typer

import constrained
from constrained.command_line.output import Json, print_json, width
from constrained.constraint.plain_data import is_list, is_mapping
from constrained.constraint.registry import ENTRY_POINT_GROUP

#: Libraries that take part in some way, by their distributions.
_PEERS = (
    *("accelerate", "botorch", "einops", "geoopt", "geotorch", "gpytorch", "hydra-core"),
    *("jsonschema", "lightning", "matplotlib", "numpy", "omegaconf", "peft", "pyro-ppl"),
    *("pytorch-lightning", "safetensors", "scipy", "skorch", "torchvision", "transformers"),
)

#: The packages of this distribution.
_PACKAGES = ("constrained", "constraints")


def doctor(as_json: Json = False) -> None:
    """Show versions, devices, and what is in the way.

    The exit code is 1 if something is.
    """
    facts: dict[str, Any] = {
        "python": f"{platform.python_version()} ({sys.executable})",
        "platform": platform.platform(),
        "torch": str(torch.__version__),
        "constrained": constrained.__version__,
        "devices": _devices(),
        "packages": {name: str(_path_of(name)) for name in _PACKAGES},
        "peers": _peers(),
    }
    failed = _failed_entry_points()
    facts["constraints"] = len(constrained.names())
    problems = [*failed, *_shadowed(), *_another_version()]
    if as_json:
        print_json({**facts, "problems": problems})
    else:
        for key, value in facts.items():
            typer.echo("\n".join(_lines(key, value)))
        for problem in problems:
            typer.echo(f"PROBLEM {problem}")
        typer.echo("" if problems else "\nNothing is in the way.")
    raise typer.Exit(1 if problems else 0)


def _devices() -> list[str]:
    found = [f"cpu ({torch.get_num_threads()} threads)"]
    if torch.cuda.is_available():
        found += [
            f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())
        ]
    if torch.backends.mps.is_available():
        found.append("mps")
    return found


def _path_of(package: str) -> Path | None:
    __import__(package)
    found = sys.modules[package].__file__
    return None if found is None else Path(found).parent


def _peers() -> dict[str, str]:
    found: dict[str, str] = {}
    for name in _PEERS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _failed_entry_points() -> list[str]:
    """The entry points that cannot be loaded, whose constraints are missing therefore."""
    found: list[str] = []
    with warnings.catch_warnings():
        # The registry warns of the same.
        warnings.simplefilter("ignore", RuntimeWarning)
        constrained.names()
    for point in entry_points(group=ENTRY_POINT_GROUP):
        try:
            point.load()
        except Exception as error:
            of = "" if point.dist is None else f" of {point.dist.name}"
            reason = " ".join(str(error).split())
            found.append(
                f"The constraints of '{point.value}'{of} are missing, since loading it raised "
                f"{type(error).__name__}: {reason}"
            )
    return found


def _shadowed() -> list[str]:
    """Other modules of our names, one of which is imported in the place of the other."""
    found: list[str] = []
    for name in _PACKAGES:
        places: dict[Path, None] = {}
        for folder in sys.path:
            for place in (
                Path(folder or ".", name, "__init__.py"),
                Path(folder or ".", f"{name}.py"),
            ):
                if place.is_file():
                    places[place.resolve()] = None
        used = Path(str(sys.modules[name].__file__)).resolve()
        others = [str(place) for place in places if place != used]
        found += [f"'{other}' has the name of {used.parent}." for other in others]
    return found


def _another_version() -> list[str]:
    try:
        installed = version("constrained-layers")
    except PackageNotFoundError:
        return ["constrained-layers is not installed, so that its catalogue is not found."]
    if installed == constrained.__version__:
        return []
    return [
        f"constrained-layers {installed} is installed, and {constrained.__version__} is imported, "
        f"from {_path_of('constrained')}."
    ]


def _lines(key: str, value: Any) -> list[str]:
    if is_mapping(value):
        value = ", ".join(f"{name} {text}" for name, text in value.items()) or "none"
    elif is_list(value):
        value = ", ".join(map(str, value))
    indent = " " * 13
    text = f"{key:<12} {value}"
    return textwrap.wrap(
        text, width(), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
