"""``check``: the dry run of a config."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from constrained import plan, read_config
from constrained.command_line.models import Imports, Model, import_all, model_of
from constrained.command_line.output import Json, fail, for_shell, print_json
from constrained.constraint.errors import SpecError
from constrained.constraint.plain_data import is_mapping
from constrained.constraint.registry import did_you_mean
from constrained.model.start import Init


def check(
    config: Annotated[Path, typer.Argument(help="A file of YAML, JSON or TOML.")],
    model: Annotated[str, Model],
    key: Annotated[
        str | None,
        typer.Option(help="Where in the file the constraints are, such as model.constraints."),
    ] = None,
    init: Annotated[Init, typer.Option(help="Where tensors start.")] = "keep",
    imports: Imports = None,
    as_json: Json = False,
) -> None:
    """Show what a config would do to a model, and its errors.

    The exit code is 1 if something is wrong with the config, and 2 if the file or the model cannot
    be had.
    """
    try:
        data = read_config(config)
    except (OSError, SpecError) as error:
        fail(str(error))
    rules = data if key is None else _below(config, data, key)
    import_all(imports)
    found = plan(model_of(model), rules, init=init)
    if as_json:
        print_json(found.to_dict())
    else:
        typer.echo(for_shell(str(found)))
        if found.errors and key is None and is_mapping(data.get("constraints")):
            typer.echo(f"HINT {config} has a key 'constraints': try --key constraints.")
    raise typer.Exit(1 if found.errors else 0)


def _below(path: Path, data: Any, key: str) -> dict[str, Any]:
    """What a file has under a key, which may have dots."""
    found = data
    for i, part in enumerate(key.split(".")):
        if not is_mapping(found) or part not in found:
            where = f" under {'.'.join(key.split('.')[:i])!r}" if i else ""
            known = list(map(str, found)) if is_mapping(found) else []
            fail(f"{path}: there is no key {part!r}{where}.{did_you_mean(part, known)}")
        found = found[part]
    if not is_mapping(found):
        fail(f"{path}: {key!r} must hold a mapping from tensors to constraints.")
    return cast("dict[str, Any]", found)
