"""The registered constraints: names, aliases, entry points, and guesses at misspelled names."""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Callable, Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from constrained.constraint.arguments import snake_case
from constrained.constraint.base import Constraint
from constrained.constraint.errors import UnknownNameError
from constrained.constraint.plain_data import short

ENTRY_POINT_GROUP = "constrained.constraints"


#: The entry point of the catalogue. It is loaded before all others, so that nobody takes its names.
_CATALOGUE = "catalogue = constraints"

#: No guess is made at a longer word: that would take long.
_LONGEST = 200

C = TypeVar("C", bound=type[Constraint])


_constraints: dict[str, type[Constraint]] = {}
_aliases: dict[str, str] = {}
_loaded: set[str] = set()
_adapters: list[Callable[[Any], Constraint | None]] = []
_spellings: dict[str, tuple[str, dict[str, str | None]]] = {}


def register(name: str | None = None, *, aliases: Iterable[str] = ()) -> Callable[[C], C]:
    """Class decorator that puts a `Constraint` into the registry.

    The catalogue is registered before any other package: nobody else can take one of its names.

    Args:
        name: the name in configs, in snake case; by default the name of the class.
        aliases: other names under which the same constraint is found.

    Raises:
        ValueError: if another class holds the name or an alias already.

    Example:
        >>> import constrained
        >>> @constrained.register("unit_interval")                      # doctest: +SKIP
        ... class UnitInterval(constrained.Constraint): ...
    """
    if isinstance(name, type):
        raise TypeError("register is called: @register() or @register('name').")

    def decorate(cls: C) -> C:
        given: Any = cls
        if not (isinstance(given, type) and issubclass(given, Constraint)):
            raise TypeError(f"Only a subclass of Constraint can be registered, got {cls!r}.")
        _load_catalogue()
        chosen = name or snake_case(cls.__name__)
        spellings = (chosen, *aliases)
        for spelling in spellings:
            if not re.fullmatch("[a-z][a-z0-9_]*", spelling):
                raise ValueError(
                    f"{spelling!r} is not a name for a constraint: write it in snake case, as in "
                    f"{snake_case(cls.__name__)!r}."
                )
            holder = _constraints.get(_aliases.get(spelling, spelling))
            if holder is not None and not _same_class(holder, cls):
                raise ValueError(
                    f"The name {spelling!r} belongs to {holder.__module__}.{holder.__qualname__} "
                    f"already; register {cls.__module__}.{cls.__qualname__} under another one."
                )
        cls.name = chosen
        cls.aliases = tuple(aliases)
        _constraints[chosen] = cls
        _aliases.update(dict.fromkeys(cls.aliases, chosen))
        return cls

    return decorate


def register_adapter(
    function: Callable[[Any], Constraint | None],
) -> Callable[[Any], Constraint | None]:
    """Decorator of a function that makes constraints of another library's objects.

    It is called with any object that is neither a spec nor a `Constraint`, and returns a
    `Constraint`, or None for an object that it does not know.
    """
    _load_catalogue()
    _adapters.append(function)
    return function


def register_spelling(theirs: str, name: str, arguments: dict[str, str | None]) -> None:
    """Let specs name a constraint as another library does: ``"geotorch:Hurwitz(alpha=0.1)"``.

    Args:
        theirs: the path of the other library's class.
        name: the registered name.
        arguments: the argument here for each argument of that class; None for one that has no
            meaning here.

    Raises:
        ValueError: if the class path means something else already.
    """
    _load_catalogue()
    if _spellings.setdefault(theirs, (name, arguments)) != (name, arguments):
        raise ValueError(f"{theirs!r} means {_spellings[theirs][0]!r} already.")


def respelled(path: str) -> tuple[str, dict[str, str | None]] | None:
    """The name and arguments that `register_spelling` was given for a class path, or None."""
    _load_entry_points()
    return _spellings.get(path)


def classes_of(library: str) -> list[str]:
    """The names of a library's classes that were registered, sorted."""
    _load_entry_points()
    known = (path.split(":") for path in _spellings)
    return sorted(cls for prefix, cls in known if prefix == library)


def without_prefix(name: str) -> str:
    """What a name with a prefix, as in ``"geotorch:orthogonal"``, may have meant; "" if unknown."""
    if len(name) > _LONGEST:
        return ""
    _load_entry_points()
    prefix, word = name.replace(":", ".").rpartition(".")[::2]
    known = {*_constraints, *_aliases}
    if word not in known:
        prefix, word = word, prefix
    if word not in known:
        return ""
    name_here = _aliases.get(word, word)
    found = [
        path
        for path, (target, _) in _spellings.items()
        if path.startswith(f"{prefix}:") and target == name_here
    ]
    if found:
        return f" Did you mean {found[0]!r}, or {word!r} without a prefix?"
    libraries = sorted({key.partition(":")[0] for key in _spellings})
    return (
        f" Did you mean {word!r}, without a prefix? A prefix is {' or '.join(libraries)}, before "
        "the name of one of its classes, or an imported module, before one of that."
    )


def adapted(thing: Any) -> Any:
    """The constraint that an adapter makes of an object of another library; else the object."""
    if isinstance(thing, Constraint):
        return thing
    _load_entry_points()
    return next((found for adapt in _adapters if (found := adapt(thing)) is not None), thing)


def names() -> list[str]:
    """The registered names in snake case, sorted, without aliases."""
    _load_entry_points()
    return sorted(_constraints)


def is_known(name: str) -> bool:
    """Whether there is a constraint of this name or alias."""
    _load_entry_points()
    return name in _constraints or name in _aliases


def get(name: str) -> type[Constraint]:
    """The constraint class of a name or an alias.

    Raises:
        KeyError: if there is none, with a guess at what was meant.
    """
    given: Any = name
    if not isinstance(given, str):
        raise TypeError(f"A constraint's name must be a string, got {type(name).__name__}.")
    if name not in _constraints and name not in _aliases:
        _load_entry_points()
    cls = _constraints.get(_aliases.get(name, name))
    if cls is None:
        head, parenthesis, _ = name.partition("(")
        if parenthesis and head in {*_constraints, *_aliases}:
            raise UnknownNameError(
                f"Unknown constraint {short(name)}: get takes the name alone, and gives the class, "
                f"which takes the arguments: get({head!r})(...)."
            )
        guess = without_prefix(name) or did_you_mean(name, [*_constraints, *_aliases])
        raise UnknownNameError(
            f"Unknown constraint {short(name)}.{guess} constrained.names() lists them all."
        )
    return cls


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``" Did you mean 'orthogonal'?"``; empty if no known word is similar."""
    if len(word) > _LONGEST:
        return ""
    normal = {k.lower().replace("-", "_"): k for k in known}
    lowered = snake_case(word).replace("-", "_").replace(" ", "_")
    close = difflib.get_close_matches(lowered, normal, n=1, cutoff=0.6)
    if not close:
        squashed = {k.replace("_", ""): v for k, v in normal.items()}
        found = squashed.get(lowered.replace("_", ""))
        return f" Did you mean {found!r}?" if found else ""
    return f" Did you mean {normal[close[0]]!r}?"


def _same_class(a: type, b: type) -> bool:
    # A class that is defined again, as by importlib.reload, keeps its name.
    return (a.__module__, a.__qualname__) == (b.__module__, b.__qualname__)


def _load_catalogue() -> None:
    # `register` calls this for each class, also in the catalogue. The catalogue is loaded once.
    if _CATALOGUE not in _loaded:
        _load(point for point in _entry_points() if _key(point) == _CATALOGUE)
        _loaded.add(_CATALOGUE)


def _load_entry_points() -> None:
    _load_catalogue()
    _load(_entry_points())


def _entry_points() -> list[EntryPoint]:
    return list(entry_points(group=ENTRY_POINT_GROUP))


def _key(point: EntryPoint) -> str:
    return f"{point.name} = {point.value}"


def _load(points: Iterable[EntryPoint]) -> None:
    for point in points:
        key = _key(point)
        if key in _loaded:
            continue
        _loaded.add(key)
        try:
            point.load()
        except Exception as error:
            # Without one broken third-party package all other constraints must still work.
            warnings.warn(
                f"The constraints of the entry point {key!r} could not be loaded: {error!r}.",
                RuntimeWarning,
                stacklevel=4,
            )
