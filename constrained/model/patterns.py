"""Patterns over the paths of a model's tensors: wildcards, alternatives, types of modules."""

from __future__ import annotations

import difflib
import fnmatch
import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from constrained.constraint.errors import SpecError
from constrained.constraint.plain_data import short
from constrained.constraint.registry import did_you_mean
from constrained.parametrized.tensor_locations import Location
from constrained.torch_internals.modules import submodules

#: A pattern may have at most so many tokens: wildcards, and the text between them.
_MOST_TOKENS = 64

#: Braces may expand to at most so many patterns.
_MOST_ALTERNATIVES = 256

#: The most characters of a pattern, and the deepest nesting of its braces.
_LONGEST, _DEEPEST = 1_000, 8

#: Of a pattern that matches nothing so many alternatives are corrected, each segment up to so many
#: characters, by so many words: comparing takes long.
_MOST_CORRECTED, _LONGEST_WORD, _MOST_WORDS = 8, 100, 1_000

#: What begins the type of a module in a pattern.
_TYPE = re.compile(r"(?:^|\.)type=")

#: The wildcards, and the text between them. Dots beside ``**`` belong to it: where it matches no
#: segment, there is one dot less.
_TOKENS = re.compile(
    r"\.\*\*\.|\*\*\.|\.\*\*|\*\*|\*|\?|\[!?[^\]]+\]|[^*?\[]+?(?=\.?\*|[?\[]|$)", re.DOTALL
)


def is_pattern(target: str) -> bool:
    """Whether a target is written as a pattern; else it is a path, or ``Linear.weight``."""
    return any(sign in target for sign in "*?[{") or _TYPE.search(target) is not None


def match(model: nn.Module, target: str, available: Mapping[str, Location]) -> list[Location]:
    """The parameters of a model that a pattern matches, in the order of the model.

    Args:
        model: the model.
        target: the pattern.
        available: the tensors of the model by their paths.

    Raises:
        SpecError: if the pattern is malformed, or names a type that no module of the model has.
    """
    paths: set[str] = set()
    if len(target) > _LONGEST:
        raise SpecError(f"{short(target)} has more than {_LONGEST} characters.")
    for alternative in _alternatives(target):
        if _TYPE.search(alternative) is not None:
            paths |= _of_type(model, alternative, available)
        else:
            paths |= _matching(alternative, (p for p, at in available.items() if at.is_parameter))
    return [place for path, place in available.items() if path in paths]


def match_type(model: nn.Module, target: str, available: Mapping[str, Location]) -> list[Location]:
    """The parameters that ``Linear.weight`` matches: by the type of the module that owns them."""
    head, dot, rest = target.partition(".")
    if not (dot and rest and head in _classes(model)):
        return []
    return match(model, f"type={target}", available)


def nearest(target: str, available: Mapping[str, Location]) -> str:
    """A pattern that matches, and differs in some words from one that does not; "" if none does.

    Args:
        target: the pattern that matches nothing.
        available: the tensors of the model by their paths.
    """
    paths = [path for path, place in available.items() if place.is_parameter]
    words = list(dict.fromkeys(word for path in paths for word in path.split(".")))[:_MOST_WORDS]
    for alternative in _alternatives(target)[:_MOST_CORRECTED]:
        if _TYPE.search(alternative) is not None:
            continue
        corrected = ".".join(_nearest_word(segment, words) for segment in alternative.split("."))
        for pattern in (corrected, f"**.{corrected}"):
            if not _too_long(pattern) and _matching(pattern, paths):
                return pattern
    return ""


def reached(target: str, paths: Iterable[str]) -> tuple[str, list[str]]:
    """How far a pattern that matches nothing leads in a model.

    Args:
        target: the pattern.
        paths: of the tensors of the model.

    Returns:
        Its longest beginning, of whole segments, that names modules, and the names that stand below
        these. The beginning is "" if the first segment names none, or there is ``**`` or a type.
    """
    below: dict[str, dict[str, None]] = {}
    for path in paths:
        parts = path.split(".")
        for i in range(1, len(parts)):
            below.setdefault(".".join(parts[:i]), {})[parts[i]] = None
    found: tuple[str, list[str]] = "", []
    segments = _alternatives(target)[0].split(".")[:_MOST_TOKENS]
    for count in range(1, len(segments) + 1):
        head = ".".join(segments[:count])
        if "**" in segments[count - 1] or _TYPE.search(head) or _too_long(head):
            break
        modules = _matching(head, below)
        if not modules:
            break
        names = (name for module in below if module in modules for name in below[module])
        found = head, list(dict.fromkeys(names))
    return found


def _too_long(pattern: str) -> bool:
    return len(_TOKENS.findall(pattern)) > _MOST_TOKENS


def _nearest_word(segment: str, words: Sequence[str]) -> str:
    """The word that a segment of a pattern may stand for; itself if it is one, or has wildcards."""
    if segment in words or len(segment) > _LONGEST_WORD or any(sign in segment for sign in "*?["):
        return segment
    return next(iter(difflib.get_close_matches(segment, words, 1, cutoff=0.6)), segment)


def _alternatives(target: str, depth: int = 0) -> list[str]:
    """All patterns that one with braces stands for: ``{q,k}_x`` are ``q_x`` and ``k_x``."""
    if depth > _DEEPEST:
        raise SpecError(f"{short(target)} has braces inside of more than {_DEEPEST} others.")
    found = [""]
    for part in _parts(target, depth):
        options = part if isinstance(part, list) else [part]
        found = [f"{head}{option}" for head in found for option in options]
        if len(found) > _MOST_ALTERNATIVES:
            raise SpecError(
                f"{short(target)} stands for too many patterns: its braces may give "
                f"{_MOST_ALTERNATIVES} at most."
            )
    return found


def _parts(target: str, level: int) -> Iterator[str | list[str]]:
    """The parts of a pattern; those in braces as lists of alternatives."""
    start = depth = 0
    cuts: list[int] = []
    for i, character in enumerate(target):
        if character == "{":
            if not depth:
                yield target[start:i]
                cuts = [i]
            depth += 1
        elif character == "," and depth == 1:
            cuts.append(i)
        elif character == "}" and depth:
            depth -= 1
            if not depth:
                inner = [target[a + 1 : b] for a, b in zip(cuts, [*cuts[1:], i], strict=True)]
                options = (_range(part) or _alternatives(part, level + 1) for part in inner)
                yield [one for some in options for one in some]
                start = i + 1
    if depth:
        raise SpecError(f"{short(target)} has an opening brace without a closing one.")
    yield target[start:]


def _range(text: str) -> list[str]:
    """The numbers of ``0..11``; empty if the text is no range."""
    ends = re.fullmatch(r"(\d{1,9})\.\.(\d{1,9})", text)
    if ends is None:
        return []
    first, last = int(ends[1]), int(ends[2])
    if last - first >= _MOST_ALTERNATIVES:
        raise SpecError(
            f"{short(text)} is a range of more than {_MOST_ALTERNATIVES} numbers; write '*'."
        )
    return [str(number) for number in range(first, last + 1)]


def _matching(pattern: str, paths: Iterable[str]) -> set[str]:
    """The paths that a pattern without braces and types matches."""
    tokens = _TOKENS.findall(pattern)
    if "".join(tokens) != pattern:
        raise SpecError(f"{short(pattern)} has an opening bracket without a closing one.")
    if len(tokens) > _MOST_TOKENS:
        raise SpecError(
            f"{short(pattern)} has too many wildcards: a pattern may be cut by them into "
            f"{_MOST_TOKENS} parts."
        )
    # A quick test: most paths begin or end otherwise than the pattern does.
    first = tokens[0] if tokens and not _is_wildcard(tokens[0]) else ""
    last = tokens[-1] if tokens and not _is_wildcard(tokens[-1]) else ""
    return {p for p in paths if p.startswith(first) and p.endswith(last) and _fits(p, tokens)}


def _is_wildcard(token: str) -> bool:
    return "*" in token or token == "?" or token.startswith("[")


def _fits(path: str, tokens: Sequence[str]) -> bool:
    """Whether a pattern, cut into wildcards and what is between them, matches a path.

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
        elif token == ".**.":
            # The same between segments: one dot is enough.
            dots = [end for end in ends if path[end : end + 1] == "."]
            after = range(min(dots, default=len(path)), len(path))
            ends = {i + 1 for i in after if path[i] == "."}
        elif token == ".**":
            dots = [end for end in ends if path[end : end + 1] == "."]
            ends |= set(range(min(dots) + 1, len(path) + 1)) if dots else set()
        elif token == "?" or token.startswith("["):
            ends = {end + 1 for end in ends if _is_one(path[end : end + 1], token)}
        else:
            ends = {end + len(token) for end in ends if path.startswith(token, end)}
        if not ends:
            return False
    return len(path) in ends


def _is_one(character: str, token: str) -> bool:
    """Whether a character fits ``?`` or ``[seq]``; a dot, which ends a segment, never does."""
    return character not in ("", ".") and _compiled(token).match(character) is not None


@functools.lru_cache
def _compiled(token: str) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(token))


@dataclass(frozen=True)
class _TypePattern:
    """``encoder.**.type=nn.Linear.weight``: a module's path, its type, and a path below it."""

    prefix: str
    cls: str
    rest: str


def _of_type(model: nn.Module, pattern: str, available: Mapping[str, Location]) -> set[str]:
    """The paths that a pattern with ``type=`` matches: tensors of modules of that type."""
    classes = _classes(model)
    wanted = _type_pattern(pattern, classes)
    found: set[str] = set()
    for prefix in classes[wanted.cls]:
        # ``type=...`` replaces the last segment of a module's path: any name fits there.
        if wanted.prefix and not _matching(f"{wanted.prefix}.*", [prefix]):
            continue
        start = f"{prefix}." if prefix else ""
        below = {
            path.removeprefix(start): path
            for path, place in available.items()
            if place.is_parameter and path.startswith(start)
        }
        found |= {below[rest] for rest in _matching(wanted.rest, below)}
    return found


def _type_pattern(pattern: str, classes: Mapping[str, Sequence[str]]) -> _TypePattern:
    prefix, _, after = pattern.partition("type=")
    segments = after.split(".")
    for count in range(len(segments), 0, -1):
        cls = ".".join(segments[:count])
        if cls in classes:
            # All tensors of such a module, if none is named.
            return _TypePattern(prefix.rstrip("."), cls, ".".join(segments[count:]) or "*")
    short_names = [name for name in classes if "." not in name]
    guesses = (did_you_mean(segment, short_names) for segment in segments)
    guess = next(filter(None, guesses), "")
    raise SpecError(f"No module of the model has the type of {short(pattern)}.{guess}")


def _classes(model: nn.Module) -> dict[str, list[str]]:
    """The paths of the modules of each type, by its names: ``Linear``, ``nn.Linear``, ..."""
    found: dict[str, list[str]] = {}
    for path, module in submodules(model, remove_duplicate=False):
        for cls in type(module).__mro__:
            if cls is nn.Module:
                break
            names = {cls.__name__, f"{cls.__module__}.{cls.__qualname__}"}
            if getattr(nn, cls.__name__, None) is cls:
                names |= {f"nn.{cls.__name__}", f"torch.nn.{cls.__name__}"}
            for name in names:
                found.setdefault(name, []).append(path)
    return found
