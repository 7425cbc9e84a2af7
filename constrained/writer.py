"""What the originals in a checkpoint were written for: said on saving, read on loading.

Many constraints have originals of the same names and shapes, of which their maps make different
values. So a state dict says what each tensor was parametrized by: in the metadata that torch keeps
beside the entries, where it keeps the versions of modules. It is plain data. Nothing that stands in
a checkpoint is executed, and the names in it are looked up in the registry only.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from constrained import registry
from constrained.constraint import Constraint, has_values
from constrained.plain_data import SpecError, check_extent, short
from constrained.sharded import whole
from constrained.spec import instantiate
from constrained.torch_internals.modules import versions_in
from constrained.view import View

#: Under which the metadata of a module says it, by the names of the module's tensors.
_KEY = "constraints"

_INSIDE = re.compile(r"(?:(?P<owner>.*)\.)?parametrizations\.(?P<name>[^.]+)\.", re.DOTALL)


def sign(state_dict: Any, prefix: str, chain: Sequence[nn.Module]) -> None:
    """Let a state dict say what a tensor is parametrized by, if a constraint is among it.

    Of other modules there would be nothing to say but their classes.

    Args:
        state_dict: what is being written; nothing is said in a mapping without metadata.
        prefix: of the keys of the tensor's entries, such as ``"0.parametrizations.weight."``.
        chain: the parametrizations, in the order of application.
    """
    if not any(isinstance(module, Constraint) for module in chain):
        return
    found = _INSIDE.fullmatch(prefix)
    metadata: Any = versions_in(state_dict)
    # Of a module that is saved on its own there is no owner that could say it.
    owner = metadata.get(found["owner"] or "") if found and metadata else None
    if found and owner is not None:
        owner.setdefault(_KEY, {})[found["name"]] = described(chain)


def signature(metadata: Mapping[str, Any], name: str) -> list[Any] | None:
    """What the metadata of a module says that one of its tensors was written for, if it does."""
    said = metadata.get(_KEY)
    found = said.get(name) if isinstance(said, Mapping) else None
    return found if isinstance(found, list) and found else None


def unsigned(metadata: Mapping[str, Any], owner: str, plain: Container[str]) -> dict[str, Any]:
    """The metadata of a module some of whose tensors have become plain ones.

    Args:
        metadata: that of the module.
        owner: the path of the module.
        plain: the paths of these tensors.
    """
    left = dict(metadata)
    said = {
        name: signature
        for name, signature in left.pop(_KEY, {}).items()
        if (f"{owner}.{name}" if owner else name) not in plain
    }
    return {**left, _KEY: said} if said else left


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


class Writer:
    """The parametrizations that the entries of a tensor were written for.

    Args:
        signature: what the checkpoint says.
        shape: the shape of the tensor here, which a view needs; None if it is not known yet.

    Attributes:
        signature: what the checkpoint says.
    """

    def __init__(self, signature: list[Any], shape: Sequence[int] | None) -> None:
        self.signature = signature
        self._shape = shape

    @classmethod
    def other(
        cls, signature: list[Any], chain: Sequence[nn.Module], shape: Sequence[int] | None
    ) -> Writer | None:
        """The writer, unless it is these very parametrizations.

        Of modules that are no constraints nothing is known but their classes, which may have been
        renamed: any are taken for the same.
        """
        mine, writer = described(chain), cls(signature, shape)
        if _same(signature, mine) or not any(isinstance(e, Mapping) for e in (*signature, *mine)):
            return None
        try:
            return None if _same(described(writer._build()), mine) else writer
        except (ValueError, TypeError):
            return writer

    def has_only_constraints(self) -> bool:
        """Whether all of them are constraints; of other modules nothing but the class is known."""
        return all(isinstance(entry, Mapping) for entry in self.signature)

    def value(self, entries: Mapping[str, Any]) -> tuple[Tensor, tuple[str, ...]]:
        """The value that the entries of the tensor stand for, and which of them it is made of.

        Args:
            entries: what stands under ``parametrizations.<tensor>.`` in the checkpoint.

        Raises:
            ValueError: if the value cannot be told.
        """
        chain = self._build()
        modules = nn.ModuleList(chain).eval()
        own = {key: entries[key] for key in modules.state_dict() if key in entries}
        count = sum(re.fullmatch(r"original\d+", key) is not None for key in entries)
        names = [f"original{i}" for i in range(count)] if count else ["original"]
        originals = [entries.get(name) for name in names]
        for name, tensor in zip(names, originals, strict=True):
            if not isinstance(tensor, Tensor):
                raise ValueError(f"{self!r} has no tensor '{name}' in the checkpoint.")
            if has_values(tensor) and not bool(torch.isfinite(whole(tensor)).all()):
                raise ValueError(f"'{name}' of the checkpoint holds NaN or infinite values.")
        try:
            modules.load_state_dict(own, assign=True)
            value, *others = [whole(tensor.detach()) for tensor in originals]  # type: ignore[union-attr]
            value = chain[0](value, *others)
            for module in chain[1:]:
                value = module(value)
        except Exception as error:
            # Whatever is wrong with the entries, torch says it in many lines.
            reason = str(error).strip().partition("\n")[0]
            raise ValueError(f"its entries do not give a value ({reason[:200]}).") from error
        return value, (*names, *own)

    def _build(self) -> list[Constraint]:
        return [_built(entry, self._shape) for entry in self.signature]

    def __repr__(self) -> str:
        return " then ".join(_words(entry, self._shape) for entry in self.signature)


def _built(entry: Any, shape: Sequence[int] | None) -> Constraint:
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


def _words(entry: Any, shape: Sequence[int] | None) -> str:
    try:
        return repr(_built(entry, shape))
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


def _same(one: Any, other: Any) -> bool:
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
