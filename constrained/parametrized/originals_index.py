"""Which parametrized tensors each parameter is an original of: an index of the whole process.

An optimizer knows parameters. After its step something has to be done to the tensors that are
computed from them. The index finds these by the id of a parameter, without going through all
parametrized tensors of the process. It keeps no list alive. An entry may be out of date, as after a
write into ``module._parameters``, so what is found is compared with what the list holds now.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import Tensor, nn

from constrained.atomic.first_use import note_use


class _Entry:
    """A parametrization list, and the ids of the parameters that it is indexed under."""

    __slots__ = ("_list", "ids", "key")

    def __init__(self, parametrizations: nn.Module) -> None:
        self.key, self.ids = id(parametrizations), frozenset[int]()
        self._list = weakref.ref(parametrizations, partial(_forget, self))

    def __call__(self) -> Any:
        """The list, if it is still alive."""
        return self._list()


_entries: dict[int, _Entry] = {}

_by_parameter: dict[int, tuple[_Entry, ...]] = {}

# Several threads may build models, and the garbage collector, which may run at any line, removes
# the entries of lists that no longer exist. Code that only reads needs no lock, since tuples are
# replaced as a whole.
_lock = threading.RLock()


def index_list(parametrizations: nn.Module) -> None:
    """Index a list under its present originals, and remove entries under former ones."""
    note_use()
    entry = _entries.get(id(parametrizations))
    ids = frozenset(id(p) for p in _originals(parametrizations) if p is not None)
    if entry is not None and entry() is parametrizations and entry.ids == ids:
        return
    with _lock:
        if entry is None or entry() is not parametrizations:
            entry = _Entry(parametrizations)
            _entries[entry.key] = entry
        _move(entry, ids)


def reindex_all() -> None:
    """Index every list under its present originals."""
    for found in indexed_lists():
        index_list(found)


def is_empty() -> bool:
    """Whether the process has no parametrized tensor."""
    return not _entries


def indexed_lists() -> list[Any]:
    """The lists of all parametrized tensors of the process."""
    with _lock:
        everything = list(_entries.values())
    return [found for entry in everything if (found := entry()) is not None]


def lists_with_original(parameter: Tensor) -> Iterator[Any]:
    """The lists that this very parameter is an original of. The one indexed last comes last."""
    for entry in _by_parameter.get(id(parameter), ()):
        found = entry()
        if found is not None and any(p is parameter for p in _originals(found)):
            yield found


def list_with_original(parameter: Tensor) -> Any:
    """The list that this very parameter is an original of: the one indexed last, or None."""
    return next(reversed([*lists_with_original(parameter)]), None)


def _originals(parametrizations: nn.Module) -> list[nn.Parameter | None]:
    # `list` copies them at once: another thread may register one meanwhile.
    return list(parametrizations._parameters.values())


def _forget(dead: _Entry, _: object) -> None:
    with _lock:
        _move(dead, frozenset())
        if _entries.get(dead.key) is dead:
            del _entries[dead.key]


def _move(entry: _Entry, ids: frozenset[int]) -> None:
    for changed in entry.ids ^ ids:
        others = _by_parameter.get(changed, ())
        # A list that is deleted while this runs may not have removed its own entry.
        others = tuple(e for e in others if e is not entry and e() is not None)
        now = (*others, entry) if changed in ids else others
        if now:
            _by_parameter[changed] = now
        else:
            _by_parameter.pop(changed, None)
    entry.ids = ids
