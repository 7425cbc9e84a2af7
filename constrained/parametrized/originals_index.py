"""Which parametrized tensors a parameter is an original of.

An optimizer knows parameters, and what follows its step is due for the tensors that are computed
from them. They are noted here under the parameter's id, weakly, and found without a look at the
other tensors of the process. A note may be out of date, as where somebody writes into
``module._parameters``: so what is found is compared with what the tensor holds now.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch import Tensor, nn


class _Note:
    """A holder, and the ids that it is noted under."""

    __slots__ = ("_holder", "ids", "key")

    def __init__(self, holder: nn.Module) -> None:
        self.key, self.ids = id(holder), frozenset[int]()
        self._holder = weakref.ref(holder, partial(_forget, self))

    def __call__(self) -> Any:
        """The holder, if it is still there."""
        return self._holder()


_notes: dict[int, _Note] = {}

_by_parameter: dict[int, tuple[_Note, ...]] = {}

# Several threads build models, and the garbage collector, which may run in any line of one of
# them, forgets those that are gone. What only reads takes no lock: it sees whole tuples.
_lock = threading.RLock()

#: What is to be called when the first tensor is noted.
_waiting: list[Callable[[], None]] = []


def when_first_noted(function: Callable[[], None]) -> None:
    """Call a function once, as soon as there is a parametrized tensor."""
    _waiting.append(function)


def note(holder: nn.Module) -> None:
    """Note which parameters a tensor is computed from, in place of what was noted before."""
    while _waiting:
        _waiting.pop()()
    found = _notes.get(id(holder))
    ids = frozenset(id(p) for p in _originals(holder) if p is not None)
    if found is not None and found() is holder and found.ids == ids:
        return
    with _lock:
        if found is None or found() is not holder:
            found = _Note(holder)
            _notes[found.key] = found
        _move(found, ids)


def note_all() -> None:
    """Note anew what every tensor is computed from."""
    for holder in all_holders():
        note(holder)


def all_holders() -> list[Any]:
    """Every tensor of the process that is computed from originals."""
    with _lock:
        everything = list(_notes.values())
    return [holder for found in everything if (holder := found()) is not None]


def holders(parameter: Tensor) -> Iterator[Any]:
    """The tensors that this very parameter is an original of, the one noted last at the end."""
    for found in _by_parameter.get(id(parameter), ()):
        holder = found()
        if holder is not None and any(p is parameter for p in _originals(holder)):
            yield holder


def _originals(holder: nn.Module) -> list[nn.Parameter | None]:
    # In one go: another thread may be about to register one.
    return list(holder._parameters.values())


def _forget(dead: _Note, _: object) -> None:
    with _lock:
        _move(dead, frozenset())
        if _notes.get(dead.key) is dead:
            del _notes[dead.key]


def _move(found: _Note, ids: frozenset[int]) -> None:
    for changed in found.ids ^ ids:
        others = _by_parameter.get(changed, ())
        # One that has died while this runs may have missed its own entry.
        others = tuple(n for n in others if n is not found and n() is not None)
        now = (*others, found) if changed in ids else others
        if now:
            _by_parameter[changed] = now
        else:
            _by_parameter.pop(changed, None)
    found.ids = ids
