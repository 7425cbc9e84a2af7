"""Which tensors of a model a target names, by an exact path or a glob."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

from torch import nn

from constrained.constraint.plain_data import short
from constrained.parametrized.tensor_locations import Location, locations, why_not_registered
from constrained.torch_internals.modules import submodules

T = TypeVar("T")


#: The most parts, wildcards and what is between them, that a glob may have.
_MOST_TOKENS = 64


def select(model: nn.Module, targets: Mapping[str, T]) -> dict[str, tuple[list[Location], T]]:
    """Find the tensors that targets name.

    A target is a path, which may name a buffer, or a glob over the paths of parameters: ``*``
    stays inside one segment, ``**`` crosses segments (``**.weight`` also matches ``weight``). A
    path has precedence over a glob. It is an error if two globs, or two paths, map one tensor to
    different things.

    Args:
        model: the model.
        targets: what each target maps to.

    Returns:
        For the first path of each distinct tensor: all its locations in the model, and what its
        target maps to.

    Raises:
        ValueError: if a target matches nothing, or two targets contradict each other.
    """
    available = locations(model)
    tied: dict[int, dict[tuple[nn.Module, str], Location]] = {}
    for place in available.values():
        # If a module is registered under several names, its first path counts.
        same = tied.setdefault(id(place.tensor), {})
        same.setdefault((place.module, place.name), place)
    chosen: dict[int, str] = {}
    result: dict[str, tuple[list[Location], T]] = {}
    # Paths first: they have precedence.
    for target in sorted(targets, key=is_glob):
        matched = _match(target, available)
        if not matched:
            raise ValueError(
                f"No tensor of {type(model).__name__} matches {short(target, 200)}."
                f"{_computed(model, target) or _suggest(target, available)}"
            )
        for place in matched:
            other = chosen.get(id(place.tensor))
            if other is None:
                same = [*tied[id(place.tensor)].values()]
                result[same[0].path] = (same, targets[target])
                chosen[id(place.tensor)] = target
            elif is_glob(other) == is_glob(target) and targets[other] != targets[target]:
                cure = "name it by its path to say which one counts"
                if not is_glob(target):
                    cure = "they name one tied tensor, which has one constraint"
                raise ValueError(
                    f"'{place.path}' matches two targets, {short(other, 200)} and "
                    f"{short(target, 200)}; {cure}."
                )
    order = {path: i for i, path in enumerate(available)}
    return dict(sorted(result.items(), key=lambda item: order[item[0]]))


def is_glob(target: str) -> bool:
    """Whether a target is a pattern; else it is the path of a tensor."""
    return "*" in target


def _match(target: str, available: Mapping[str, Location]) -> list[Location]:
    if not is_glob(target):
        return [available[target]] if target in available else []
    tokens = re.findall(r"\*\*\.|\.\*\*|\*\*|\*|[^*]+?(?=\.?\*|$)", target, re.DOTALL)
    if len(tokens) > _MOST_TOKENS:
        raise ValueError(
            f"{short(target)} has too many wildcards: a glob may be cut by them into "
            f"{_MOST_TOKENS} parts."
        )
    # A quick test first: most paths do not begin and end as the glob does.
    first = "" if "*" in tokens[0] else tokens[0]
    last = "" if "*" in tokens[-1] else tokens[-1]
    return [
        p
        for path, p in available.items()
        if p.is_parameter
        and path.startswith(first)
        and path.endswith(last)
        and _is_matched(path, tokens)
    ]


def _is_matched(path: str, tokens: Sequence[str]) -> bool:
    """Whether a glob, cut into wildcards and what is between them, matches a path.

    All positions in the path that the tokens so far can reach are followed together. Trying one
    way after another would take exponentially long.
    """
    ends = {0}
    for token in tokens:
        if token == "*":
            # Up to the end of the segment, each position once.
            there: set[int] = set()
            for end in sorted(ends):
                while end not in there:
                    there.add(end)
                    if end < len(path) and path[end] != ".":
                        end += 1
            ends = there
        elif token == "**":
            ends = set(range(min(ends), len(path) + 1))
        elif token == "**.":
            # No segments at all, or any number of them.
            ends |= {i + 1 for i in range(min(ends), len(path)) if path[i] == "."}
        elif token == ".**":
            dots = [end for end in ends if path[end : end + 1] == "."]
            ends |= set(range(min(dots) + 1, len(path) + 1)) if dots else set()
        else:
            ends = {end + len(token) for end in ends if path.startswith(token, end)}
        if not ends:
            return False
    return len(path) in ends


def _computed(model: nn.Module, target: str) -> str:
    """A sentence about a target that is a tensor, but neither a parameter nor a buffer."""
    prefix, _, name = target.rpartition(".")
    owner = dict(submodules(model, remove_duplicate=False)).get(prefix)
    reason = "" if owner is None or len(name) > 200 else why_not_registered(owner, name)
    return reason and f" {reason}"


def _suggest(target: str, available: Mapping[str, Location]) -> str:
    if not available:
        return " It has no tensors."
    last = target.rsplit(".", 1)[-1]
    # Comparing takes long for long words and for many.
    likely = [path for path in available if len(path) - len(target) in range(-20, 21)][:1000]
    endings = [path for path in available if not is_glob(target) and path.endswith(f".{last}")]
    close = [] if len(target) > 200 else difflib.get_close_matches(target, likely, 1, cutoff=0.6)
    close = close or endings[:1]
    if close:
        return f" Did you mean {close[0]!r}?"
    paths = list(available)
    return f" Its tensors are {', '.join(paths[:6])}{', ...' if len(paths) > 6 else ''}."
