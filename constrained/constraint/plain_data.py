"""How large the data of a config or a checkpoint may be, and how it is quoted in messages.

Data may refer to its own parts, as by the aliases of YAML: a few lines can then stand for more than
the memory of a machine.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard

from constrained.constraint.errors import SpecError

#: How deep lists and mappings may be nested, specs in specs among them.
DEEPEST = 32


#: Common types without parts.
_SINGLE = frozenset({int, float, bool, str, bytes, type(None)})

#: Data that has no more values than this when written out in full may repeat any parts of itself.
_FEW = 2**16


def is_mapping(data: Any) -> TypeGuard[Mapping[Any, Any]]:
    """Whether data is a mapping, of any keys and values."""
    return isinstance(data, Mapping)


def is_list(data: Any) -> TypeGuard[list[Any] | tuple[Any, ...]]:
    """Whether data is a list or a tuple, of anything."""
    return isinstance(data, (list, tuple))


def check_extent(data: Any) -> None:
    """Raise a `SpecError` if data contains itself, is nested too deep, or repeats itself too often.

    Data that is written out in full may be of any size.
    """
    known: dict[int, tuple[int, int]] = {}
    total, _ = _extent(data, known, 0)
    if total > _FEW and total > 2 * sum(len(part) for part in _containers(data)):
        raise SpecError(
            "The data repeats parts of itself again and again: written out in full it would have "
            f"{min(total, 10**300):.1e} values."
        )


def _extent(data: Any, known: dict[int, tuple[int, int]], depth: int) -> tuple[int, int]:
    """How many values data has if it is written out in full, and how deep they are."""
    if not (is_mapping(data) or is_list(data)):
        return 1, 0
    found = known.get(id(data))
    if depth + (found[1] if found else 0) > DEEPEST:
        raise SpecError(f"The data is nested more than {DEEPEST} deep, or holds itself.")
    if found is None:
        count, height = len(data), 0
        for item in _parts(data):
            if type(item) not in _SINGLE:
                more, below = _extent(item, known, depth + 1)
                count, height = count + more - 1, max(height, below + 1)
        known[id(data)] = found = count, height
    return found


def _parts(data: Any) -> Iterable[Any]:
    """The values of a mapping, the elements of a list, and nothing of anything else."""
    if is_mapping(data):
        return data.values()
    return data if is_list(data) else ()


def _containers(data: Any) -> list[Any]:
    """Every list and mapping in data, each once."""
    found: dict[int, Any] = {}
    left = [data]
    while left:
        part = left.pop()
        if (is_mapping(part) or is_list(part)) and id(part) not in found:
            found[id(part)] = part
            left += (item for item in _parts(part) if type(item) not in _SINGLE)
    return list(found.values())


class _Short(reprlib.Repr):
    def repr1(self, x: Any, level: int) -> str:
        if hasattr(x, "shape"):
            return f"a {type(x).__name__}"
        if isinstance(x, int) and abs(x) >= 2**64:
            # Python refuses to write a number of very many digits.
            return f"a whole number of {x.bit_length()} bits"
        return super().repr1(x, level)


def short(value: Any, length: int = 60) -> str:
    """A value as a message quotes it: in one line, of no more than ``length`` characters."""
    if isinstance(value, (str, bytes)):
        text = repr(value[:length])
    else:
        shortened = _Short()
        shortened.maxlist = shortened.maxtuple = shortened.maxdict = length // 2
        shortened.maxstring = shortened.maxother = shortened.maxlong = 2 * length
        text = " ".join(shortened.repr(value).split())
    return text if len(text) <= length else text[: length - 3] + "..."
