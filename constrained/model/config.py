"""Configs: mappings from targets to constraints, as YAML, JSON, TOML or Hydra give them."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from constrained.constraint.base import Constraint
from constrained.constraint.errors import SpecError
from constrained.constraint.named_views import is_named, named_view
from constrained.constraint.plain_data import (
    DEEPEST,
    check_extent,
    is_list,
    is_mapping,
    short,
)
from constrained.constraint.registry import did_you_mean
from constrained.constraint.spec import Request, named_by_key, parse, unwrapped
from constrained.constraint.view import View
from constrained.model.error_messages import with_path
from constrained.parametrized.tensor_locations import Location

#: Which tensors a rule takes; see `constrain`.
Where = Literal["all", "fits", "matrices", "vectors"]

WHERE: tuple[Where, ...] = get_args(Where)

_DIMENSIONS = {"matrices": 2, "vectors": 1}

#: How a config writes None in a format without it, such as TOML.
_NONE = "none"


@dataclass(frozen=True)
class Rule:
    """What a config says about the tensors that a target names.

    Attributes:
        request: the constraint; None leaves them unconstrained.
        where: which of the tensors are taken.
    """

    request: Request | None
    where: Where = "all"

    def with_settings(self, settings: Mapping[str, str]) -> Rule:
        """The rule with the settings of its request that it does not have itself."""
        if self.request is None:
            return self
        missing = {k: v for k, v in settings.items() if getattr(self.request, k) is None}
        return dataclasses.replace(self, request=dataclasses.replace(self.request, **missing))

    def why_not(self, place: Location) -> str:
        """Why the rule does not take a tensor that its target matches; "" if it takes it.

        Raises:
            ValueError: for a tensor without a shape.
        """
        if self.where == "all" or self.request is None:
            return ""
        tensor: Any = place.tensor
        if isinstance(tensor, nn.Module):
            # It is constrained already: that is an error, not a reason to leave it out.
            return ""
        if is_lazy(tensor):
            raise ValueError(
                f"'{place.path}' has no shape yet, so whether where={self.where!r} takes it is "
                "unknown: call the model once on an example first."
            )
        if tensor.dim() != _DIMENSIONS.get(self.where, tensor.dim()):
            return (
                "it has one dimension" if tensor.dim() == 1 else f"it has {tensor.dim()} dimensions"
            )
        constraint = self.request.constraint
        if not isinstance(constraint, Constraint):
            return ""
        try:
            constraint = constraint.fitted(
                place.module, place.name, viewed=self.request.view is not None
            )
            # Without numbers: that some are NaN is an error, not a reason to leave the tensor out.
            empty = torch.empty_like(tensor, device="meta")
            viewed(constraint, self.request, place, tensor.shape).check_tensor(empty)
        except (ValueError, TypeError) as error:
            return str(error)
        return ""


def viewed(
    constraint: Constraint, request: Request, place: Location, shape: Sequence[int]
) -> Constraint:
    """A constraint on a tensor as the view of a request shows it.

    Args:
        constraint: the constraint on what is seen.
        request: with the view, if there is one.
        place: where the tensor is registered.
        shape: its shape.

    Raises:
        ValueError: if the view does not fit the tensor.
    """
    view, sizes = request.view, request.sizes
    if view is None:
        return constraint
    if is_named(view):
        view, sizes = named_view(view, place.module, place.name, shape)
    return View(constraint, view, shape, sizes)


def read_rules(config: Any, paths: Collection[str] = ()) -> tuple[dict[str, Rule], list[Exception]]:
    """The rules of a config by their targets, in order, and all that is wrong with them.

    Args:
        config: a mapping, a dataclass, or OmegaConf's ``DictConfig``. A nested mapping means the
            same as keys with dots: ``{"encoder": {"weight": ...}}`` is ``{"encoder.weight": ...}``.
        paths: the paths of all tensors of the model. A mapping that is given for one of them is a
            spec, and not a nested config.
    """
    try:
        data = plain(config)
        check_extent(data)
    except SpecError as error:
        return {}, [error]
    if not is_mapping(data):
        kind = type(config).__name__
        return {}, [
            SpecError(
                "The target must be a path, a pattern, or a mapping from these to constraints, got "
                f"{kind}."
            )
        ]
    rules: dict[str, Rule] = {}
    errors: list[Exception] = []
    for target, spec in _flat(data, "", paths):
        try:
            if not isinstance(target, str):
                raise SpecError(
                    f"A target is a path or a pattern, a string, got {short(target)}; put it in "
                    "quotes, since YAML reads words such as on, no and null, and numbers, as other "
                    "data."
                )
            if target in rules:
                raise SpecError(
                    f"{short(target, 200)} is given twice, once with dots and once nested."
                )
            owner, _, last = target.rpartition(".")
            nested = is_mapping(spec) and "name" not in spec and target not in paths
            guess = named_by_key(last, spec) if owner and nested else ""
            if guess:
                raise SpecError(
                    f"{short(owner, 200)} is given a mapping whose key is the name of the "
                    f"constraint, and not the key 'name'.{guess}"
                )
            rules[target] = read_rule(target, spec)
        except (ValueError, TypeError) as error:
            errors.append(error)
    return rules, errors


def read_rule(
    target: str, spec: Any, view: str | None = None, arguments: Mapping[str, Any] | None = None
) -> Rule:
    """One rule of a config.

    Args:
        target: its target, which messages name.
        spec: what the target is mapped to.
        view: a view that is given beside the spec.
        arguments: further arguments of the constraint, and perhaps ``where``.

    Raises:
        SpecError: if the spec is not valid.
        UnknownNameError: for a name that is not registered.
    """
    if spec is None or spec == _NONE:
        return Rule(None)
    spec, more = unwrapped(spec), dict(arguments or {})
    try:
        if is_mapping(spec) and "where" in spec:
            more = {"where": spec["where"], **more}
            spec = {key: value for key, value in spec.items() if key != "where"}
        where = more.pop("where", "all")
        if where not in WHERE:
            guess = did_you_mean(where, WHERE) if isinstance(where, str) else ""
            raise SpecError(f"where must be one of {', '.join(WHERE)}, got {short(where)}.{guess}")
        return Rule(parse(spec, view, **more), where)
    except (ValueError, TypeError) as error:
        raise with_path(short(target, 200)[1:-1], error) from error.__cause__


def _flat(
    data: Mapping[Any, Any], prefix: str, paths: Collection[str]
) -> Iterator[tuple[Any, Any]]:
    """The targets of a config, nested ones with dots, and what each is mapped to."""
    for key, value in data.items():
        if isinstance(key, int) and not isinstance(key, bool):
            # YAML reads the index of a layer as a number.
            key = str(key)
        target: Any = f"{prefix}.{key}" if prefix and isinstance(key, str) else key
        if isinstance(target, str) and target not in paths and _has_targets(value):
            yield from _flat(value, target, paths)
        else:
            yield target, value


def _has_targets(value: Any) -> bool:
    """Whether a mapping is a part of a config, and not a spec."""
    if not is_mapping(value) or not value:
        return False
    if "name" in value and not is_mapping(value["name"]):
        return False
    # A mapping with numbers in it is taken for a spec, so that the error asks for its name.
    return not any(isinstance(v, (bool, int, float)) for v in value.values())


def plain(data: Any) -> Any:
    """Data as dictionaries, lists and tuples, whichever containers hold it.

    Raises:
        SpecError: if it holds itself, is nested too deep, or a container refuses to be read.
    """
    return _plain(data, {}, 0)


def _plain(data: Any, known: dict[int, tuple[Any, Any]], depth: int) -> Any:
    if isinstance(data, (str, bytes, nn.Module, type)):
        return data
    whole: Any = data
    if id(whole) in known:
        # An alias in YAML is one object used twice: it is converted once.
        return known[id(whole)][1]
    below: Any
    if dataclasses.is_dataclass(data):
        below = {field.name: getattr(data, field.name) for field in dataclasses.fields(data)}
    elif is_list(data):
        below = data
    elif isinstance(data, (Mapping, Sequence)):
        below = _foreign(cast(Any, data))
    else:
        return data
    if depth > DEEPEST:
        raise SpecError(f"The data is nested more than {DEEPEST} deep, or holds itself.")
    made: Any
    if is_mapping(below):
        made = {key: _plain(value, known, depth + 1) for key, value in below.items()}
    else:
        made = [_plain(value, known, depth + 1) for value in below]
        made = tuple(made) if isinstance(below, tuple) else made
    # With the data itself: its id may be given to other data as soon as it is gone.
    known[id(whole)] = whole, made
    return made


def _foreign(data: Any) -> Any:
    """The items of another library's container, which may compute them, as OmegaConf does."""
    try:
        return dict(data.items()) if is_mapping(data) else list(data)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise SpecError(f"The config cannot be read: {reason[:300]}.") from error
