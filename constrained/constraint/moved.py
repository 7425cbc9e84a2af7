"""Names whose module has another path now: the old path goes on working, with a warning.

Imports, and above all pickled models, name a class by the module that it stands in.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any

#: The version in which all that is deprecated since 0.2 goes: it works for two minor versions.
UNTIL = "0.4"

#: Names, separated by blanks, by the module that they are defined in now; ``old:new`` for one that
#: is called otherwise there.
Names = Mapping[str, str]


def find_moved(old: str, names: Names) -> Callable[[str], Any]:
    """The ``__getattr__`` of a module that has had names which are defined elsewhere now.

    Args:
        old: the dotted path of the module.
        names: these names.
    """
    now: dict[str, tuple[str, str]] = {}
    for module, found in names.items():
        for entry in found.split():
            former, _, present = entry.partition(":")
            now[former] = module, present or former

    def find(name: str) -> Any:
        if name not in now:
            raise AttributeError(f"module {old!r} has no attribute {name!r}")
        module, present = now[name]
        warnings.warn(
            f"{old}.{name} is {module}.{present} now: import it from there, and save anew what was "
            f"pickled. The old path will go in version {UNTIL}.",
            DeprecationWarning,
            stacklevel=2,
        )
        return getattr(import_module(module), present)

    return find


def renamed_method(old: str, new: str) -> Callable[..., Any]:
    """A method that calls the one that has its place now, with a warning.

    Args:
        old: the name of the method.
        new: the name of the one to call.
    """

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        warnings.warn(
            f"{type(self).__name__}.{old} is called {new} now; the old name will go in version "
            f"{UNTIL}.",
            DeprecationWarning,
            stacklevel=2,
        )
        return getattr(self, new)(*args, **kwargs)

    return call


def keep_old_paths(moved: Mapping[str, Names]) -> Callable[[str], Any]:
    """Let modules be imported by the paths that they had before.

    Args:
        moved: the names that each of these modules has had, by its old path. All are in one
            package.

    Returns:
        The ``__getattr__`` of that package, for ``import package.old`` and then ``package.old``.
    """
    package = next(iter(moved)).rpartition(".")[0]
    for old, names in moved.items():
        # Not left to an import hook: what the import system loads it binds in the package as well,
        # where a function may have the name of a module, as `constrained.spec` has.
        module = ModuleType(old, f"What was here is in {', '.join(names)}.")
        vars(module)["__getattr__"] = find_moved(old, names)
        sys.modules[old] = module

    def find(name: str) -> Any:
        path = f"{package}.{name}"
        if path not in moved:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return sys.modules[path]

    return find
