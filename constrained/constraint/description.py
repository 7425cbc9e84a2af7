"""Parametrizations as plain data with all their arguments, as checkpoints hold them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from constrained.constraint import registry
from constrained.constraint.base import Constraint
from constrained.constraint.errors import SpecError
from constrained.constraint.plain_data import check_extent, short
from constrained.constraint.spec import instantiate
from constrained.constraint.view import View
from constrained.torch_internals.tensors import has_values


def described(chain: Sequence[nn.Module]) -> list[Any]:
    """Parametrizations as plain data: all arguments of a constraint, the class of another module.

    Arguments are complete, so that a default may change (but for those of the parts of a `chain` or
    a `product`), and without those that are no plain data.
    """
    return [_described(module) for module in chain]


def _described(module: nn.Module) -> Any:
    cls = type(module)
    if isinstance(module, View):
        view = {"view": str(module.pattern), "sizes": dict(module.sizes)}
        return {**_described(module.constraint), **view}
    if not isinstance(module, Constraint):
        return f"{cls.__module__}:{cls.__qualname__}"
    # Not the name that a class inherits, which is another's.
    name = vars(cls).get("name") or f"{cls.__module__}:{cls.__qualname__}"
    found = ((key, _plain(value)) for key, value in _arguments(module).items())
    return {"name": name, "arguments": {key: v for key, v in found if v is not NotImplemented}}


def _arguments(constraint: Constraint) -> dict[str, Any]:
    # A class that does not store an argument must be saved all the same.
    names = inspect.signature(type(constraint).__init__).parameters
    return {n: getattr(constraint, n) for n in names if n != "self" and hasattr(constraint, n)}


def _plain(value: Any) -> Any:
    """A value of types that torch loads from any file; NotImplemented for one that has none."""
    if value is None or isinstance(value, bool):
        return value
    # Of the very types: those of numpy, say, or of an Enum, are subclasses of these.
    for kind in (int, float):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, Mapping):
        pairs = {str(key): _plain(item) for key, item in value.items()}
        return NotImplemented if NotImplemented in pairs.values() else pairs
    if isinstance(value, (list, tuple)):
        items = [_plain(item) for item in value]
        return NotImplemented if any(item is NotImplemented for item in items) else items
    return NotImplemented


def built(entry: Any, shape: Sequence[int] | None) -> Constraint:
    """A constraint from what a checkpoint says of it.

    Raises:
        ValueError: if it is none of the registry, or what is said of it does not fit.
    """
    if not isinstance(entry, Mapping):
        raise SpecError(f"{_name(entry)} is no constraint.")
    check_extent(entry)
    name, arguments = entry.get("name"), entry.get("arguments")
    if not isinstance(name, str) or not isinstance(arguments, Mapping):
        raise SpecError(f"{short(name)} is no constraint.")
    if ":" in name or _holds(arguments, lambda value: isinstance(value, str) and ":" in value):
        # The path of a class, which is not in the registry.
        raise SpecError(f"{short(name)} is registered under no name.")
    constraint = instantiate(registry.get(name), **{str(k): v for k, v in arguments.items()})
    view, sizes = entry.get("view"), entry.get("sizes")
    if view is None:
        return constraint
    if not (isinstance(view, str) and isinstance(sizes, Mapping)) or shape is None:
        raise SpecError(f"{short(view)} is a view of a tensor whose shape is not known.")
    return View(constraint, view, shape, sizes)


def words(entry: Any, shape: Sequence[int] | None) -> str:
    try:
        return repr(built(entry, shape))
    except (ValueError, TypeError):
        return _name(entry)


def _name(entry: Any) -> str:
    name = entry.get("name") if isinstance(entry, Mapping) else entry
    # Of a class its name alone, as messages call modules.
    return short(name.rpartition(":")[2])[1:-1] if isinstance(name, str) else short(name)


def _holds(data: Any, what: Callable[[Any], bool]) -> bool:
    """Whether something of this kind is anywhere in data whose extent was checked."""
    if isinstance(data, Mapping):
        return any(_holds(key, what) or _holds(value, what) for key, value in data.items())
    if isinstance(data, (list, tuple)):
        return any(_holds(item, what) for item in data)
    return what(data)


def same(one: Any, other: Any) -> bool:
    """Whether two descriptions are the same; of modules that are no constraints, always."""
    try:
        check_extent(one)
    except SpecError:
        return False
    if len(one) != len(other):
        return False
    return all(
        (isinstance(a, str) and isinstance(b, str)) or _equal(_placeless(a), _placeless(b))
        for a, b in zip(one, other, strict=True)
    )


def _placeless(entry: Any) -> Any:
    """What is said of a class that is not registered, without its module, which has two names.

    A class of the script that trains is imported from there by the one that evaluates.
    """
    name = entry.get("name") if isinstance(entry, Mapping) else None
    if not isinstance(name, str) or ":" not in name:
        return entry
    return {**entry, "name": f":{name.rpartition(':')[2]}"}


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if not (has_values(one) and has_values(other)):
            return one.shape == other.shape
        return torch.equal(one.cpu(), other.cpu())
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_equal, one, other))
    return type(one) is type(other) and bool(one == other)
