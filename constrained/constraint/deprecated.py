"""Members of `Constraint` that had another name: the old one works on, with a warning."""

from __future__ import annotations

import sys
import warnings
from typing import Any

from constrained.constraint.moved import UNTIL

#: The present name of each member by its old one.
RENAMED = {
    "ambient": "value_index",
    "exempt": "expected_failures",
    "keeps": "preserves",
    "recomputes": "recompute_in_backward",
}

#: The attribute in which a class holds those of its members that have old names.
_KNOWN = "_members_of_old_names"


def present_name(old: str) -> str:
    """What a member is called now; warns of the old name. The caller's caller is told."""
    new = RENAMED[old]
    warnings.warn(
        f"Constraint.{old} is called {new} now; the old name will go in version {UNTIL}.",
        DeprecationWarning,
        stacklevel=3,
    )
    return new


class Renamed:
    """A class attribute that is read under its present name."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._old = name

    def __get__(self, instance: Any, owner: type) -> Any:
        # Torch's tracers read whatever ``dir`` lists, and use none of these.
        reader = sys._getframe(1).f_globals.get("__name__", "")
        is_torch = reader.partition(".")[0] == "torch"
        name = RENAMED[self._old] if is_torch else present_name(self._old)
        return getattr(owner if instance is None else instance, name)


def rename_members(cls: type) -> None:
    """Give a class the members under their present names that it has, or inherits, under old ones.

    The old names stay, for methods that ask `super` for them.
    """
    for old, new in RENAMED.items():
        for kind in cls.__mro__:
            found = vars(kind)
            if new in found:
                break
            if old in found and not isinstance(found[old], Renamed):
                setattr(cls, present_name(old), found[old])
                break
    setattr(cls, _KNOWN, {old: vars(cls)[old] for old in RENAMED if old in vars(cls)})


def rename_added_members(cls: type) -> None:
    """Do the same for members that were added to a class, or to one above it, since it was made.

    A class does not notice that. So its instances ask, when one is made or copied.
    """
    for kind in cls.__mro__:
        found = vars(kind)
        known = found.get(_KNOWN)
        if known is None:
            continue
        for old in RENAMED:
            if old in found and (old not in known or known[old] is not found[old]):
                known[old] = found[old]
                setattr(kind, present_name(old), found[old])
