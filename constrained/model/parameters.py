"""From the path of a tensor to the parameters that it is computed from, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import nn

from constrained.constraint.errors import SpecError
from constrained.constraint.plain_data import is_mapping, short
from constrained.model.targets import matches
from constrained.parametrized.tensor_locations import (
    Location,
    check_model,
    locations,
    parameters_at,
)


def parameters_of(model: nn.Module, target: str) -> dict[str, nn.Parameter]:
    """The parameters that tensors are computed from: what an optimizer trains in their place.

    Of a plain tensor that is the parameter itself, of a constrained one its free parameters, and
    those of its constraint, if it has some. Tied tensors have theirs once.

    Args:
        model: the model.
        target: the path of a tensor, such as ``"fc.weight"``, or a pattern over the paths of
            parameters, as in `constrain`.

    Returns:
        The parameters by their names in ``model.named_parameters()``. Empty for a buffer.

    Raises:
        ValueError: if no tensor matches.

    Example:
        >>> import torch, constrained
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 4))
        >>> model = constrained.constrain(model, "0.weight", "low_rank(rank=1)")
        >>> list(constrained.parameters_of(model, "0.weight"))
        ['0.parametrizations.weight.original0', '0.parametrizations.weight.original1']
        >>> list(constrained.parameters_of(model, "**.bias"))
        ['0.bias', '1.bias']
    """
    if not isinstance(target, str):  # pyright: ignore[reportUnnecessaryIsInstance] - callers may be untyped
        raise TypeError(f"The target must be a path or a pattern, got {type(target).__name__}.")
    check_model(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    (_, places), *_ = matches(model, [target])
    found = (parameter for place in places for parameter in _at(place))
    return {names[id(parameter)]: parameter for parameter in found}


def tensor_paths(model: nn.Module) -> dict[str, str]:
    """The tensor that each parameter belongs to: the reverse of `parameters_of`.

    Args:
        model: the model.

    Returns:
        For each name in ``model.named_parameters()`` the path of the tensor: of a free parameter
        that of the constrained tensor, of any other its own name.

    Example:
        >>> import torch, constrained
        >>> model = constrained.constrain(torch.nn.Linear(3, 3), "weight", "sphere")
        >>> constrained.tensor_paths(model)
        {'parametrizations.weight.original': 'weight', 'bias': 'bias'}
    """
    paths: dict[int, str] = {}
    for path, place in locations(model).items():
        for parameter in _at(place):
            paths.setdefault(id(parameter), path)
    return {name: paths.get(id(p), name) for name, p in model.named_parameters()}


def param_groups(
    model: nn.Module, rules: Mapping[str, Mapping[str, Any] | None]
) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer, by the paths of the tensors, constrained or not.

    The options of all patterns that mean a tensor add up, and the rule of its own path replaces
    them. Two patterns, or two paths of one tied tensor, that give an option different values are an
    error: which of them is meant is not guessed.

    Args:
        model: the model.
        rules: options of the optimizer for each target: a path or a pattern, as in `constrain`.
            ``None`` for a pattern is an exception from the others: it takes all options from the
            tensors that it means, unless their own paths give them some.

    Returns:
        Groups with ``params`` and the options, in the order of the rules; in the last one are the
        parameters without options, which have the optimizer's defaults. Every parameter of the
        model is in one group, frozen ones too.

    Raises:
        ValueError: if a target matches no parameter, or rules contradict each other.
        TypeError: if the rules are not mappings.

    Example:
        >>> import torch, constrained
        >>> layers = [torch.nn.Linear(3, 3), torch.nn.LayerNorm(3), torch.nn.Linear(3, 1)]
        >>> model = constrained.constrain(torch.nn.Sequential(*layers), "0.weight", "orthogonal")
        >>> groups = constrained.param_groups(
        ...     model, {"**.weight": {"weight_decay": 0.1}, "1.*": None, "0.weight": {"lr": 0.05}}
        ... )
        >>> optimizer = torch.optim.AdamW(groups, lr=0.01, weight_decay=0.0)
        >>> for group in optimizer.param_groups:
        ...     print(len(group["params"]), group["lr"], group["weight_decay"])
        1 0.01 0.1
        1 0.05 0.0
        4 0.01 0.0
    """
    check_model(model)
    _check_rules(rules)
    available = locations(model)
    chosen: dict[int, _Options] = {}
    for number, (target, places) in enumerate(matches(model, rules)):
        options, is_path = rules[target], target in available
        matched = [(place.path, p) for place in places for p in _at(place)]
        if not matched:
            raise ValueError(f"{short(target)} means a buffer, which has no parameters to train.")
        for path, parameter in matched:
            chosen.setdefault(id(parameter), _Options(path)).add(
                _Rule(number, target, is_path, options)
            )
    groups: dict[tuple[int, ...], dict[str, Any]] = {}
    for parameter in model.parameters():
        found = chosen.get(id(parameter))
        rank, options = ((), {}) if found is None else found.merged()
        groups.setdefault(rank, {"params": [], **options})["params"].append(parameter)
    # The group without options comes last.
    return [groups[rank] for rank in sorted(groups, key=lambda rank: (not rank, rank))]


class _Rule(NamedTuple):
    """A rule that means a parameter.

    Attributes:
        number: of the rule among all.
        target: what it is for.
        is_path: whether that is the path of the tensor; else a pattern.
        options: None for an exception.
    """

    number: int
    target: str
    is_path: bool
    options: Mapping[str, Any] | None


class _Options:
    """What the rules say about one parameter.

    Args:
        path: of the tensor that it belongs to.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._rules: list[_Rule] = []

    def add(self, rule: _Rule) -> None:
        """Add a rule that means the parameter."""
        self._rules.append(rule)

    def merged(self) -> tuple[tuple[int, ...], dict[str, Any]]:
        """The numbers of the rules that say something, and what they say.

        Raises:
            ValueError: if they contradict each other.
        """
        rules = [rule for rule in self._rules if rule.is_path]
        if not rules and all(rule.options is not None for rule in self._rules):
            rules = self._rules
        given: dict[str, tuple[Any, _Rule]] = {}
        for rule in rules:
            for key, value in (rule.options or {}).items():
                known, other = given.setdefault(key, (value, rule))
                if not _same(known, value):
                    cure = (
                        "they name one tied tensor"
                        if rule.is_path
                        else "give it one by its path, or map a pattern to None that excepts it"
                    )
                    raise ValueError(
                        f"'{self._path}' has the option {key}={short(known)} by "
                        f"{short(other.target)}, and {short(value)} by {short(rule.target)}; "
                        f"{cure}."
                    )
        used = tuple(rule.number for rule in rules if rule.options)
        return used, {key: value for key, (value, _) in given.items()}


def _same(one: Any, other: Any) -> bool:
    return one is other or bool(one == other)


def _check_rules(rules: Any) -> None:
    if not is_mapping(rules):
        raise TypeError(
            "The rules are a mapping from paths or patterns to options of an optimizer, got "
            f"{short(rules)}."
        )
    for target, options in rules.items():
        if not isinstance(target, str):
            raise TypeError(f"A target is a path or a pattern, a string, got {short(target)}.")
        if options is not None and not is_mapping(options):
            raise TypeError(
                f"{short(target)} must have a mapping of options, such as {{'lr': 0.1}}, or None, "
                f"got {short(options)}."
            )
        for key in options or ():
            if not isinstance(key, str) or key == "params":
                raise SpecError(
                    f"{short(target)}: an option is a name that the optimizer knows, such as 'lr', "
                    f"got {short(key)}."
                )


def _at(place: Location) -> Iterator[nn.Parameter]:
    """The parameters of a tensor."""
    yield from parameters_at(place.module, place.name).values()
