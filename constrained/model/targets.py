"""Which tensors of a model are meant: exact paths, globs, ties."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor, nn

from constrained.constraint.base import Constraint
from constrained.constraint.plain_data import short
from constrained.parametrized.parametrization_list import ParametrizationList
from constrained.parametrized.places import check_model, is_parametrized
from constrained.parametrized.weight_tools import hint

T = TypeVar("T")


#: Of so many wildcards, and of what is between them, a glob may consist.
_MOST_TOKENS = 64


@dataclass(frozen=True)
class Place:
    """Where a tensor is registered.

    Attributes:
        path: the dotted path from the model.
        module: the submodule that owns it.
        name: its name there.
        is_parameter: a parameter or parametrized tensor, which globs match; else a buffer.
    """

    path: str
    module: nn.Module
    name: str
    is_parameter: bool

    @property
    def tensor(self) -> Tensor | nn.Module:
        """The registered tensor, or the list that parametrizes it: what ties are made of."""
        if is_parametrized(self.module, self.name):
            return self.module.parametrizations[self.name]  # type: ignore[index]
        tensors = self.module._parameters if self.is_parameter else self.module._buffers
        return tensors[self.name]  # type: ignore[return-value]


def places(model: nn.Module) -> dict[str, Place]:
    """Every tensor of a model by its path, in the order of its parameters; ties appear often."""
    check_model(model)
    found: dict[str, Place] = {}
    for prefix, module in _modules(model, ""):
        kinds = [(n, True) for n, t in module._parameters.items() if t is not None]
        if is_parametrized(module):
            kinds += [(name, True) for name in module.parametrizations]  # type: ignore[union-attr]
        kinds += [(n, False) for n, t in module._buffers.items() if t is not None]
        for name, is_parameter in kinds:
            path = f"{prefix}.{name}" if prefix else name
            found[path] = Place(path, module, name, is_parameter)
    return found


def _modules(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    yield prefix, module
    for name, child in module._modules.items():
        if child is None or (name == "parametrizations" and is_parametrized(module)):
            continue
        yield from _modules(child, f"{prefix}.{name}" if prefix else name)


def select(model: nn.Module, targets: Mapping[str, T]) -> dict[str, tuple[list[Place], T]]:
    """Find the tensors that targets mean.

    A target is a path, which may name a buffer, or a glob over the paths of parameters: ``*``
    stays inside one segment, ``**`` crosses them (``**.weight`` also matches ``weight``). A path
    outranks a glob; two globs, or two paths, that ask for different things of the same tensor are
    an error.

    Returns:
        For the first path of each distinct tensor: all its places in the model, and what its
        target maps to.

    Raises:
        ValueError: if a target matches nothing, or two targets contradict each other.
    """
    available = places(model)
    tied: dict[int, dict[tuple[nn.Module, str], Place]] = {}
    for place in available.values():
        # A module that is registered under several names has a tensor once, by its first path.
        same = tied.setdefault(id(place.tensor), {})
        same.setdefault((place.module, place.name), place)
    chosen: dict[int, str] = {}
    result: dict[str, tuple[list[Place], T]] = {}
    # Paths first: globs leave to them what they name.
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
                    f"'{place.path}' is meant by two targets, {short(other, 200)} and "
                    f"{short(target, 200)}; {cure}."
                )
    order = {path: i for i, path in enumerate(available)}
    return dict(sorted(result.items(), key=lambda item: order[item[0]]))


def is_glob(target: str) -> bool:
    """Whether a target is a pattern; else it is the path of a tensor."""
    return "*" in target


def _match(target: str, available: Mapping[str, Place]) -> list[Place]:
    if not is_glob(target):
        return [available[target]] if target in available else []
    tokens = re.findall(r"\*\*\.|\.\*\*|\*\*|\*|[^*]+?(?=\.?\*|$)", target, re.DOTALL)
    if len(tokens) > _MOST_TOKENS:
        raise ValueError(
            f"{short(target)} has too many wildcards: a glob may be cut by them into "
            f"{_MOST_TOKENS} parts."
        )
    # Most paths end in another way than a glob does, and many begin in another way.
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
    """Whether a glob, cut into wildcards and what is between them, means a path.

    The places in the path that the tokens so far lead to are followed all together, where trying
    one way after another takes exponentially long.
    """
    ends = {0}
    for token in tokens:
        if token == "*":
            # To the end of the segment. What one way has passed, the others need not pass again.
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
    """A sentence about a target that is a tensor, but one that nobody registered."""
    prefix, _, name = target.rpartition(".")
    owner = dict(model.named_modules(remove_duplicate=False)).get(prefix)
    reason = "" if owner is None or len(name) > 200 else hint(owner, name)
    return reason and f" {reason}"


def _suggest(target: str, available: Mapping[str, Place]) -> str:
    if not available:
        return " It has no tensors."
    last = target.rsplit(".", 1)[-1]
    # Comparing long words, or a word with many, takes long.
    likely = [path for path in available if len(path) - len(target) in range(-20, 21)][:1000]
    endings = [path for path in available if not is_glob(target) and path.endswith(f".{last}")]
    close = [] if len(target) > 200 else difflib.get_close_matches(target, likely, 1, cutoff=0.6)
    close = close or endings[:1]
    if close:
        return f" Did you mean {close[0]!r}?"
    paths = list(available)
    return f" Its tensors are {', '.join(paths[:6])}{', ...' if len(paths) > 6 else ''}."


def constrained_tensors(model: nn.Module) -> Iterator[tuple[str, ParametrizationList, Constraint]]:
    """Each tensor of a model that has a constraint: its first path, its list, the constraint."""
    for path, found in parametrized_tensors(model):
        if isinstance(found, ParametrizationList):
            constraint = found.constraint()
            if constraint is not None:
                yield path, found, constraint


def parametrized_tensors(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Each parametrized tensor of a model: its first path, its list, which may be torch's own."""
    seen: set[int] = set()
    for path, place in places(model).items():
        found = place.tensor
        if isinstance(found, nn.Module) and id(found) not in seen:
            seen.add(id(found))
            yield path, found
    # A graph of torch.fx calls the lists of its root, which it holds in a plain module.
    for path, module in _modules(model, ""):
        is_list = isinstance(module, ParametrizationList) and module is not model
        if is_list and id(module) not in seen:
            seen.add(id(module))
            yield path.replace("parametrizations.", ""), module


def is_constrained(place: Place) -> bool:
    """Whether `constrain` has parametrized a tensor, not somebody's `register_parametrization`."""
    found = place.tensor
    return isinstance(found, ParametrizationList) and found.is_constrained()
