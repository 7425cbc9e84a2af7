"""Parametrizations as plain data with all their arguments, as checkpoints hold them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from constrained.constraint import registry
from constrained.constraint.arguments import as_data
from constrained.constraint.base import Constraint
from constrained.constraint.errors import SpecError
from constrained.constraint.plain_data import check_extent, is_list, is_mapping, short
from constrained.constraint.spec import instantiate
from constrained.constraint.view import View
from constrained.torch_internals.tensors import has_values


def described(chain: Sequence[nn.Module]) -> list[Any]:
    """Parametrizations as plain data: all arguments of a constraint, the class of another module.

    All arguments are written, so that a default may change later (except in the parts of a `chain`
    or a `product`), apart from those that are not plain data.
    """
    return [_described(module) for module in chain]


def _described(module: nn.Module) -> Any:
    cls = type(module)
    if isinstance(module, View):
        view = {"view": str(module.pattern), "sizes": dict(module.sizes)}
        return {**_described(module.constraint), **view}
    if not isinstance(module, Constraint):
        return f"{cls.__module__}:{cls.__qualname__}"
    # A class inherits a name, but that is the name of another class.
    name = vars(cls).get("name") or f"{cls.__module__}:{cls.__qualname__}"
    found = ((key, _plain(value)) for key, value in _arguments(module).items())
    return {"name": name, "arguments": {key: v for key, v in found if v is not NotImplemented}}


def full_spec(constraint: Constraint) -> dict[str, Any]:
    """The spec of a constraint with all its arguments, so that a default may change later.

    `constrained.constrain` takes it. Of the parts of a `chain` or a `product` it has what their own
    ``spec`` has.
    """
    if isinstance(constraint, View):
        view = {"view": str(constraint.pattern), "axes": dict(constraint.sizes)}
        return {**full_spec(constraint.constraint), **view}
    short_form = constraint.spec()
    every = {key: _plain(as_data(value)) for key, value in _arguments(constraint).items()}
    every = {key: value for key, value in every.items() if value is not NotImplemented}
    return {"name": short_form["name"], **every, **short_form}


def _arguments(constraint: Constraint) -> dict[str, Any]:
    # A class need not store each of its arguments.
    names = inspect.signature(type(constraint).__init__).parameters
    return {n: getattr(constraint, n) for n in names if n != "self" and hasattr(constraint, n)}


def _plain(value: Any) -> Any:
    """A value in types that ``torch.load`` takes from any file; NotImplemented if it has none."""
    if value is None or isinstance(value, bool):
        return value
    # Converted, since numbers of numpy or members of an Enum are of subclasses of these types.
    for kind in (int, float):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Tensor):
        return value.detach()
    if is_mapping(value):
        pairs = {str(key): _plain(item) for key, item in value.items()}
        return NotImplemented if NotImplemented in pairs.values() else pairs
    if is_list(value):
        items = [_plain(item) for item in value]
        return NotImplemented if any(item is NotImplemented for item in items) else items
    return NotImplemented


def built(entry: Any, shape: Sequence[int] | None) -> Constraint:
    """The constraint that a checkpoint describes.

    Args:
        entry: one element of what `described` gave.
        shape: the shape of the tensor, which a view needs.

    Raises:
        ValueError: if it is not registered, or its arguments are not valid.
    """
    if not is_mapping(entry):
        raise SpecError(f"{_name(entry)} is not a constraint.")
    check_extent(entry)
    name, arguments = entry.get("name"), entry.get("arguments")
    if not isinstance(name, str) or not is_mapping(arguments):
        raise SpecError(f"{short(name)} is not a constraint.")
    if ":" in name or _holds(arguments, lambda value: isinstance(value, str) and ":" in value):
        # The path of a class, which is not in the registry.
        raise SpecError(f"{short(name)} is not registered.")
    constraint = instantiate(registry.get(name), **{str(k): v for k, v in arguments.items()})
    view, sizes = entry.get("view"), entry.get("sizes")
    if view is None:
        return constraint
    if not (isinstance(view, str) and is_mapping(sizes)) or shape is None:
        raise SpecError(f"{short(view)} is a view of a tensor whose shape is not known.")
    return View(constraint, view, shape, sizes)


def words(entry: Any, shape: Sequence[int] | None) -> str:
    """A description as a message shows it: the repr of the constraint, or else its name."""
    try:
        return repr(built(entry, shape))
    except (ValueError, TypeError):
        return _name(entry)


def _name(entry: Any) -> str:
    name = entry.get("name") if is_mapping(entry) else entry
    # Of a class its name alone, as messages call modules.
    return short(name.rpartition(":")[2])[1:-1] if isinstance(name, str) else short(name)


def _holds(data: Any, what: Callable[[Any], bool]) -> bool:
    """Whether data contains such a value, at any depth. `check_extent` has limited that."""
    if is_mapping(data):
        return any(_holds(key, what) or _holds(value, what) for key, value in data.items())
    if is_list(data):
        return any(_holds(item, what) for item in data)
    return what(data)


def same(one: Any, other: Any) -> bool:
    """Whether two descriptions are the same. Two modules that are not constraints always are."""
    try:
        check_extent(one)
    except SpecError:
        return False
    if len(one) != len(other):
        return False
    return all(
        (isinstance(a, str) and isinstance(b, str))
        or _equal(_without_module(a), _without_module(b))
        for a, b in zip(one, other, strict=True)
    )


def _without_module(entry: Any) -> Any:
    """A description in which a class that is not registered goes without the name of its module.

    A class of the script that trains is in ``__main__`` there, and imported by another script.
    """
    name = entry.get("name") if is_mapping(entry) else None
    if not isinstance(name, str) or ":" not in name:
        return entry
    return {**entry, "name": f":{name.rpartition(':')[2]}"}


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if not (has_values(one) and has_values(other)):
            return one.shape == other.shape
        return torch.equal(one.cpu(), other.cpu())
    if is_mapping(one) and is_mapping(other):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if is_list(one) and is_list(other):
        return len(one) == len(other) and all(map(_equal, one, other))
    return type(one) is type(other) and bool(one == other)
