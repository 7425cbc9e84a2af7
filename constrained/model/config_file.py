"""Configs in files: YAML, JSON and TOML, in which each key stands once."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from constrained.constraint.errors import SpecError
from constrained.constraint.plain_data import is_mapping, short
from constrained.constraint.registry import did_you_mean


def read_config(path: str | os.PathLike[str]) -> dict[Any, Any]:
    """Read a config from a file of YAML, JSON or TOML; nothing in it is executed.

    `constrain` and `plan` take the result, or a part of it. A key that stands twice in one mapping
    is an error, although YAML and JSON would take the last of them without a word. ``1e-3`` is a
    number, as in YAML 1.2; PyYAML by itself reads it as text. TOML has no null: ``"none"`` stands
    for it.

    Args:
        path: of the file, which ends in ``.yaml``, ``.yml``, ``.json`` or ``.toml``.

    Raises:
        OSError: if the file cannot be read.
        SpecError: if it is not what its name says, or holds no mapping (a `ValueError`). The
            sentence begins with the path, the line and the column.

    Example:
        >>> import tempfile, constrained
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "constraints.yaml")
        ...     _ = file.write_text("encoder.weight: ball(radius=2)")
        ...     constrained.read_config(file)
        {'encoder.weight': 'ball(radius=2)'}
    """
    place = Path(path)
    format_ = place.suffix.lower()
    if format_ not in _READERS:
        guess = did_you_mean(format_, _READERS)
        raise SpecError(f"{place}: a config ends in {', '.join(_READERS)}.{guess}")
    if "\0" in str(place):
        raise SpecError(f"No file is called {short(str(place))}, which holds a NUL.")
    try:
        text = place.read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise SpecError(f"{place}: this is no text file in UTF-8.") from None
    except OSError as error:
        raise type(error)(f"{place}: {error.strerror or error}.") from None
    try:
        data = _READERS[format_](text)
    except RecursionError:
        raise SpecError(f"{place}: lists and mappings are nested too deep.") from None
    except ValueError as error:
        # A message of a parser may have several lines.
        sentence = " ".join(str(error).split())[:500].rstrip(".")
        raise SpecError(f"{place}: {sentence}.") from None
    if not is_mapping(data):
        found = "it is empty" if data is None else f"it is a {type(data).__name__}"
        raise SpecError(f"{place}: the file must hold a mapping, and {found}.")
    return dict(data)


def _read_yaml(text: str) -> Any:
    # Imported here, so that `import constrained` stays fast.
    from constrained.model.yaml_keys import read_yaml

    return read_yaml(text)


class _RepeatedKeyError(ValueError):
    """A mapping of JSON with two equal keys."""


def _read_json(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"line {error.lineno}, column {error.colno}: this is no JSON: {error.msg}"
        ) from None
    except _RepeatedKeyError:
        # JSON is YAML, but for tabs, and YAML's parser knows the line.
        _read_yaml(text.replace("\t", " "))
        raise


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _RepeatedKeyError(f"the key {twice!r} stands twice in one mapping")
    return found


def _read_toml(text: str) -> Any:
    import tomllib

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"this is no TOML: {error}") from None


_READERS: dict[str, Callable[[str], Any]] = {
    ".yaml": _read_yaml,
    ".yml": _read_yaml,
    ".json": _read_json,
    ".toml": _read_toml,
}
