"""Which tensors of a model targets name, and which target has precedence."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from torch import nn

from constrained.constraint.plain_data import short
from constrained.model.patterns import is_pattern, match, match_type, nearest, reached
from constrained.parametrized.tensor_locations import Location, locations, why_not_registered
from constrained.torch_internals.modules import submodules

T = TypeVar("T")

#: After so many errors no more are looked for.
_MOST_ERRORS = 20


@dataclass(frozen=True)
class Choice(Generic[T]):
    """A tensor that targets name.

    Attributes:
        places: all its locations in the model; several if it is tied.
        target: the target that counts for it.
        value: what that target maps to, such as a rule of a config.
        overridden: the other targets that match it and map it to something else.
    """

    places: list[Location]
    target: str
    value: T
    overridden: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        """The first path of the tensor."""
        return self.places[0].path


@dataclass
class Selection(Generic[T]):
    """What targets name in a model.

    Attributes:
        choices: one for each distinct tensor, in the order of the model.
        errors: one for each target that matches nothing, is malformed, or contradicts another.
        skipped: target -> path -> why the target does not take this tensor, though it matches.
        unused: the targets that are overridden for every tensor that they take.
    """

    choices: list[Choice[T]] = field(default_factory=list[Choice[T]])
    errors: list[Exception] = field(default_factory=list[Exception])
    skipped: dict[str, dict[str, str]] = field(default_factory=dict[str, dict[str, str]])
    unused: list[str] = field(default_factory=list[str])


def _takes_all(value: object, place: Location) -> str:
    del value, place
    return ""


def select(
    model: nn.Module,
    targets: Mapping[str, T],
    why_not: Callable[[T, Location], str] = _takes_all,
) -> Selection[T]:
    """Find the tensors that targets name, and what each is mapped to.

    A target is a path, which may name a buffer, or a pattern over the paths of parameters:

    - ``*`` matches inside of one segment, ``**`` across dots (``**.weight`` also matches
      ``weight``);
    - ``?`` is one character, ``[seq]`` one of some, ``[!seq]`` one of all others;
    - ``{q,k}_proj`` are alternatives, ``{0..11}`` all numbers of a range;
    - ``type=nn.Linear.weight``, or ``Linear.weight`` where no such path exists, are the tensors of
      all modules of a type or one derived from it; ``type=nn.Linear`` are all parameters of theirs.

    A path has precedence over a pattern, and among patterns a later one over an earlier one. Two
    paths that map one tied tensor to different things are an error.

    Args:
        model: the model.
        targets: what each target maps to.
        why_not: gives the reason to skip a tensor that a target matches, from what the target maps
            to and the location; "" if there is none. None are skipped by default.
    """
    available = locations(model)
    locations_of: dict[int, dict[tuple[nn.Module, str], Location]] = {}
    for place in available.values():
        # If a module is registered under several names, its first path counts.
        same = locations_of.setdefault(id(place.tensor), {})
        same.setdefault((place.module, place.name), place)
    targets_of: dict[int, list[str]] = {}
    found = Selection[T]()
    # Later targets have precedence, and paths are put after patterns.
    for target in sorted(targets, key=lambda target: target in available):
        if len(found.errors) >= _MOST_ERRORS:
            break
        try:
            places = _match(model, target, available)
            reasons = {place.path: why_not(targets[target], place) for place in places}
            skipped = {path: reason for path, reason in reasons.items() if reason}
            if len(skipped) == len(reasons):
                raise ValueError(_none_taken(target, skipped))
        except ValueError as error:
            found.errors.append(error)
            continue
        if skipped:
            found.skipped[target] = skipped
        for place in places:
            if place.path not in skipped:
                targets_of.setdefault(id(place.tensor), []).append(target)
    effective: set[str] = set()
    for key, names in targets_of.items():
        # A pattern may match a tied tensor at several of its paths.
        target = names[-1]
        others = [name for name in dict.fromkeys(names) if targets[name] != targets[target]]
        effective.update(name for name in names if name not in others)
        choice = Choice([*locations_of[key].values()], target, targets[target], tuple(others))
        found.choices.append(choice)
        for other in others:
            if other in available and target in available:
                found.errors.append(
                    ValueError(
                        f"'{choice.path}' matches two targets, {short(other, 200)} and "
                        f"{short(target, 200)}; they name one tied tensor, which has one "
                        "constraint."
                    )
                )
    order = {path: i for i, path in enumerate(available)}
    found.choices.sort(key=lambda choice: order[choice.path])
    taken = {name for names in targets_of.values() for name in names}
    found.unused = [name for name in targets if name in taken and name not in effective]
    return found


def matches(model: nn.Module, targets: Iterable[str]) -> Iterator[tuple[str, list[Location]]]:
    """Each target with the first location of every tensor that it means, in the order of the model.

    No target overrides another here. The model is searched once for all of them.

    Args:
        model: the model.
        targets: paths and patterns, as in `select`.

    Raises:
        ValueError: if a target matches nothing or is malformed.
    """
    available = locations(model)
    first: dict[int, tuple[int, Location]] = {}
    for i, place in enumerate(available.values()):
        first.setdefault(id(place.tensor), (i, place))
    for target in targets:
        found = dict(first[id(place.tensor)] for place in _match(model, target, available))
        yield target, [found[i] for i in sorted(found)]


def _none_taken(target: str, skipped: Mapping[str, str]) -> str:
    path, reason = next(iter(skipped.items()))
    others = f", nor {len(skipped) - 1} more" if len(skipped) > 1 else ""
    return f"{short(target, 200)} does not take '{path}': {reason.rstrip('.')}{others}."


def _match(model: nn.Module, target: str, available: Mapping[str, Location]) -> list[Location]:
    """The locations that a target names: at least one.

    Raises:
        ValueError: if it matches nothing or is malformed.
    """
    if target in available:
        return [available[target]]
    found = (match if is_pattern(target) else match_type)(model, target, available)
    if not found:
        raise ValueError(
            f"No tensor of {type(model).__name__} matches {short(target, 200)}."
            f"{_what_it_is(model, target, available) or _suggest(target, available)}"
        )
    return found


def _what_it_is(model: nn.Module, target: str, available: Mapping[str, Location]) -> str:
    """A sentence about a target that is a module, or a tensor but no parameter and no buffer."""
    modules = dict(submodules(model, remove_duplicate=False))
    if target and target in modules:
        of_it = [path for path in available if path.startswith(f"{target}.")]
        if not of_it:
            return " It is a module without tensors."
        has_parameters = any(available[path].is_parameter for path in of_it)
        every = f"; '{target}.**' is all of its parameters" if has_parameters else ""
        return f" It is a module; its tensors are {_listed(of_it)}{every}."
    prefix, _, name = target.rpartition(".")
    owner = modules.get(prefix)
    reason = "" if owner is None or len(name) > 200 else why_not_registered(owner, name)
    return reason and f" {reason}"


def _listed(paths: list[str]) -> str:
    """The first of some paths, in quotes."""
    return f"{', '.join(map(repr, paths[:6]))}{', ...' if len(paths) > 6 else ''}"


def _suggest(target: str, available: Mapping[str, Location]) -> str:
    if not available:
        return " It has no tensors."
    close = [nearest(target, available)] if is_pattern(target) else []
    head, names = "", list[str]()
    if not any(close) and len(target) <= 200:
        head, names = reached(target, available)
    if head == target and names:
        return (
            f" It names modules: '*' is one part of a path, and '**' any number of them; "
            f"'{target}.**' is all of their parameters."
        )
    if head and not difflib.get_close_matches(_next(target, head), names, 1, cutoff=0.6):
        more = ", ..." if len(names) > 8 else ""
        return f" Under '{head}' there are {', '.join(names[:8])}{more}."
    if not any(close) and len(target) <= 200:
        # Comparing takes long for long words and for many.
        likely = [path for path in available if len(path) - len(target) in range(-20, 21)][:1000]
        close = difflib.get_close_matches(target, likely, 1, cutoff=0.6)
    if not any(close) and not is_pattern(target):
        last = target.rsplit(".", 1)[-1]
        close = [path for path in available if path.endswith(f".{last}")]
    if any(close):
        return f" Did you mean {close[0]!r}?"
    return f" Its tensors are {_listed(list(available))}."


def _next(target: str, head: str) -> str:
    """The segment of a target that follows so many segments as its beginning has."""
    return target.split(".")[head.count(".") + 1][:200]
