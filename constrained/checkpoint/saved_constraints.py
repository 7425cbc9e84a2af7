"""The constraints that a file has recorded: given to a model, or compared with its own."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from constrained.atomic.contents import store
from constrained.atomic.interrupts import allow_interrupt
from constrained.checkpoint.save import only_constraint, saved_spec
from constrained.checkpoint.weights_file import Record
from constrained.checkpoint.wrapper_names import Unwrapped
from constrained.constraint.base import Constraint
from constrained.constraint.description import full_spec
from constrained.constraint.errors import SpecError
from constrained.constraint.plain_data import is_mapping, short
from constrained.constraint.registry import did_you_mean
from constrained.constraint.spec import SETTINGS, parse
from constrained.constraint.view import View
from constrained.evaluation.evaluated_tensor import chain_repr
from constrained.model.constrain import constrain
from constrained.model.error_messages import with_path
from constrained.model.lazy import constrain_materialized
from constrained.parametrized.checkpoint_metadata import value_from_entries
from constrained.parametrized.deferred import deferred
from constrained.parametrized.tensor_locations import Location, locations


class UnfitError(Exception):
    """How a file does not fit a model."""


def constrain_as_saved(model: nn.Module, state: Mapping[str, Any], record: Record) -> None:
    """Constrain the tensors that are plain yet as the file says; the others must agree with it."""
    names = Unwrapped(model.state_dict())
    here = {names.name(path): place for path, place in locations(model).items()}
    _check_foreign(here, record)
    wanted = {path: _SavedConstraint(path, record) for path in record.constraints}
    entries = _entries(wanted, state)
    for path, saved in wanted.items():
        allow_interrupt()
        if path not in here:
            hint = did_you_mean(path, here)
            raise UnfitError(f"it has no tensor '{path}', which the file constrains.{hint}")
        _give_value(here[path], saved, entries[path], state.get(path))
    plain = {path: saved.rule() for path, saved in wanted.items() if here[path].holder is None}
    with warnings.catch_warnings():
        # Those about the start of a tensor and its constraint were given to whoever trained it.
        warnings.simplefilter("ignore", UserWarning)
        constrain(model, {here[path].path: rule for path, rule in plain.items()})
    held: dict[int, str] = {}
    for path, saved in wanted.items():
        found = here[path].tensor
        if not saved.agrees(here[path]):
            raise UnfitError(
                f"'{path}' has {_described(here[path])} here, and {saved.described()} in the file; "
                "load constrains a plain tensor as it was saved, so release it first."
            )
        other = held.setdefault(id(found), path)
        if other != path:
            raise UnfitError(f"'{other}' and '{path}' are tied here, and not in the file.")
    for path, place in here.items():
        is_ours = saved_spec(place.holder) is not None
        waits = deferred(place.module).get(place.name)
        if waits is not None or (is_ours and id(place.tensor) not in held):
            has = repr(waits) if waits is not None else _described(place)
            raise UnfitError(
                f"'{path}' has {has} here, and is plain in the file; release it first, or give the "
                "file's values to constrained.load_state_dict."
            )


def _check_foreign(here: Mapping[str, Location], record: Record) -> None:
    """Raise unless what others parametrized in the saved model is so in this one."""
    for path, foreign in record.foreign.items():
        found = here[path].tensor if path in here else None
        if not isinstance(found, nn.Module):
            raise UnfitError(
                f"'{path}' was parametrized by {foreign}, which is more than a file can tell; "
                "parametrize it in the same way before."
            )
        if only_constraint(found) is not None:
            raise UnfitError(
                f"'{path}' has {chain_repr(found)} here, and {foreign} in the file; parametrize it "
                "in the same way."
            )


class _SavedConstraint:
    """The constraint that a file has recorded for a tensor.

    Args:
        path: of the tensor.
        record: of the file.

    Attributes:
        path: of the tensor.
        spec: as `constrain` takes it.
        shape: of the tensor.
    """

    def __init__(self, path: str, record: Record) -> None:
        self.spec = record.constraints[path]
        self.shape = tuple(record.shapes[path])
        self.path = path

    def rule(self) -> dict[str, Any]:
        """The constraint as a spec with an object in it, made only once.

        Raises:
            ValueError: if the spec is not valid, or names what is not registered.
        """
        # The axes of a view may be called like arguments.
        beside = ("view", "axes", *SETTINGS)
        inner = {key: value for key, value in self.spec.items() if key not in beside}
        more = {key: value for key, value in self.spec.items() if key in beside}
        try:
            return {"name": parse(inner).constraint, **more}
        except (ValueError, TypeError) as error:
            raise with_path(self.path, error) from error.__cause__

    def build(self) -> Constraint:
        """The constraint, which sees a tensor of the saved shape.

        Raises:
            ValueError: if the spec is not valid, names what is not registered, or does not fit the
                shape. The sentence begins with the path.
        """
        rule = self.rule()
        constraint, view, axes = rule["name"], rule.get("view"), rule.get("axes", {})
        try:
            if view is None:
                return constraint
            if not isinstance(view, str) or not is_mapping(axes):
                raise SpecError(f"{short(view)} with {short(axes)} is no view.")
            return View(constraint, view, self.shape, axes)
        except (ValueError, TypeError) as error:
            raise with_path(self.path, error) from error.__cause__

    def value(self, entries: Mapping[str, Any], plain: Any) -> Tensor:
        """The value of the tensor, from its entries in the file.

        Args:
            entries: the free parameters.
            plain: the tensor itself, where the file has it.
        """
        if not entries and isinstance(plain, Tensor):
            return plain
        constraint = self.build()
        try:
            value, _ = value_from_entries([constraint], entries)
        except ValueError as error:
            raise with_path(self.path, error) from error.__cause__
        if value.shape != self.shape:
            raise UnfitError(
                f"'{self.path}' is recorded to have the shape {self.shape}, and its entries give "
                f"one of {tuple(value.shape)}."
            )
        return value

    def agrees(self, place: Location) -> bool:
        """Whether a tensor of a model is constrained by this, and by nothing else."""
        has = saved_spec(place.holder)
        if has is None:
            return False
        # Classes that are not registered are known by their modules, and the script that trained
        # was called __main__ then.
        if _without_module(has) == _without_module(self.spec):
            return True
        settings = {key: self.spec[key] for key in SETTINGS if key in self.spec}
        return has == {**full_spec(self.build()), **settings}

    def described(self) -> str:
        """The constraint in words."""
        try:
            mode = self.spec.get("mode")
            return repr(self.build()) + (f" by mode={mode!r}" if mode else "")
        except ValueError:
            return short(self.spec)


def _without_module(spec: Mapping[str, Any]) -> dict[str, Any]:
    return {**spec, "name": str(spec.get("name")).rpartition(":")[2]}


def _described(place: Location) -> str:
    holder = place.holder
    if holder is None:
        return "no constraint"
    return chain_repr(holder) if isinstance(holder, nn.Module) else holder.described()


def _entries(paths: Iterable[str], state: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The entries that each tensor is computed from, by their names in its list."""
    found: dict[str, dict[str, Any]] = {path: {} for path in paths}
    for key, value in state.items():
        parts = key.split(".")
        for i, part in enumerate(parts):
            if part == "parametrizations":
                path = ".".join([*parts[:i], *parts[i + 1 : i + 2]])
                if path in found and parts[i + 2 :]:
                    found[path][".".join(parts[i + 2 :])] = value
    return found


def _give_value(
    place: Location, saved: _SavedConstraint, entries: Mapping[str, Any], plain: Any
) -> None:
    """Give a plain tensor the value that it has in the file, as a member of its set.

    So it does not matter what the tensor was, and nothing moves when it is constrained.
    """
    tensor: Any = place.tensor
    if place.holder is not None:
        return
    if not is_lazy(tensor) and tensor.shape != saved.shape:
        raise UnfitError(
            f"'{saved.path}' has the shape {tuple(tensor.shape)} here, and {saved.shape} in the "
            "file."
        )
    value = None
    # A buffer that is no part of state dicts stays what it is.
    if not tensor.is_meta and place.name not in place.module._non_persistent_buffers_set:
        value = saved.value(entries, plain)
    if is_lazy(tensor):
        tensor.materialize(saved.shape)
    if value is not None:
        store(tensor, value)
    if deferred(place.module):
        constrain_materialized(place.module)
