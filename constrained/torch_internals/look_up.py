"""How private parts of torch are looked up: a part is used if it exists and does what is needed."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

_missing: list[str] = []


def find(name: str, works: Callable[[Any], bool]) -> Any:
    """A private part of torch if it exists and works; else None, and `missing` lists it.

    Args:
        name: dotted, beginning with ``torch``.
        works: tries the part, and returns whether it does what is needed. An error means no.
    """
    found = _find(name)
    try:
        is_there = found is not None and works(found)
    except Exception:  # A part that has changed may raise anything.
        is_there = False
    if not is_there:
        _missing.append(name)
        return None
    return found


def is_defined(name: str) -> bool:
    """Whether a file of torch defines a name. It is not imported: that may take seconds.

    Args:
        name: dotted, beginning with ``torch``.
    """
    found = _is_defined(name)
    if not found:
        _missing.append(name)
    return found


def _is_defined(name: str) -> bool:
    head, *folders, file, attribute = name.split(".")
    (root,) = importlib.import_module(head).__path__
    path = Path(root, *folders, f"{file}.py")
    if not path.exists():
        return False
    return re.search(rf"^{attribute}\b", path.read_text("utf-8"), re.MULTILINE) is not None


def takes(*args: Any) -> Callable[[Any], bool]:
    """A trial for `find`: whether a function takes these arguments, whatever it returns."""

    def asked(function: Any) -> bool:
        function(*args)
        return True

    return asked


def missing() -> tuple[str, ...]:
    """The private parts that are replaced, because this torch lacks them or has changed them."""
    return tuple(_missing)


def _find(name: str) -> Any:
    head, *rest = name.split(".")
    found: Any = importlib.import_module(head)
    path = head
    for part in rest:
        path = f"{path}.{part}"
        if not hasattr(found, part):
            try:
                importlib.import_module(path)
            except ImportError:
                return None
        found = getattr(found, part, None)
    return found
