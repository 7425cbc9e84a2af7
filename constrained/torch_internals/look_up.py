"""How a private part of torch is looked for."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

_missing: list[str] = []


def find(name: str, works: Callable[[Any], bool]) -> Any:
    """A private part of torch, if there is one that does what is asked of it; else None.

    Args:
        name: dotted, beginning with ``torch``.
        works: asks it something, and says whether the answer is one.
    """
    found = _find(name)
    try:
        is_there = found is not None and works(found)
    except Exception:  # What a part that has changed raises is not known.
        is_there = False
    if not is_there:
        _missing.append(name)
        return None
    return found


def is_defined(name: str) -> bool:
    """Whether a file of torch defines a name, told without loading it, which may take seconds.

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


def answers(*args: Any) -> Callable[[Any], bool]:
    """Whether a function takes these arguments, whatever it answers."""

    def asked(function: Any) -> bool:
        function(*args)
        return True

    return asked


def missing() -> tuple[str, ...]:
    """The private parts that this torch lacks, or has changed; others do their work."""
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
