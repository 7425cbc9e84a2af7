"""The values of the tensors in a checkpoint, and by what they were constrained."""

from __future__ import annotations

import copy
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from constrained.checkpoint import weights_file
from constrained.checkpoint.state_dict import load_state_dict
from constrained.command_line.output import fail
from constrained.constraint.base import Constraint
from constrained.constraint.description import built, described
from constrained.constraint.plain_data import is_mapping
from constrained.constraint.spec import parse
from constrained.constraint.view import View
from constrained.parametrized.checkpoint_metadata import SavedChain, recorded_chain
from constrained.parametrized.tensor_locations import constrained_tensors
from constrained.torch_internals.modules import submodules, versions_in

#: The key of a parametrized tensor's entry.
_ENTRY = re.compile(
    r"(?P<owner>(?:.*\.)?)parametrizations\.(?P<name>[^.]+)\.(?P<rest>.+)", re.DOTALL
)

#: What people call the state dict in a file that holds more.
_INSIDE = ("state_dict", "model_state_dict", "model", "module")


@dataclass
class Values:
    """What is in a checkpoint.

    Attributes:
        tensors: the values by the paths of the tensors.
        constraints: the constraints of those that have any that is known.
        unknown: the paths of parametrized tensors whose values are not known; their stored
            tensors are among the others.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    constraints: dict[str, Constraint] = field(default_factory=dict[str, Constraint])
    unknown: list[str] = field(default_factory=list[str])


def read(path: Path, model: nn.Module | None) -> Values:
    """The values in a checkpoint: a file of ``torch.save`` or of safetensors.

    Args:
        path: of the file.
        model: the model, constrained as the one that was saved, or plain: then, and without it,
            the constraints are those that the file records.
    """
    state, records, shapes = _state_dict(path)
    if model is None:
        return _values(state, records, shapes)
    if any(constrained_tensors(model)):
        return _loaded(path, state, model)
    own = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    return _values(state, records, {**own, **shapes})


def _state_dict(path: Path) -> tuple[dict[str, Any], dict[str, list[Any]], dict[str, Any]]:
    """The state dict in a file, what each tensor was parametrized by, and their shapes."""
    if path.is_dir():
        # As `save` and `load` have it.
        path = path / weights_file.NAME
    if not path.is_file():
        fail(f"{path}: there is no such file.")
    if path.suffix == ".safetensors":
        return _safetensors(path)
    try:
        with warnings.catch_warnings():
            # Of pickles that torch does not know, which are errors in any case.
            warnings.simplefilter("ignore")
            data: Any = torch.load(path, weights_only=True, map_location="cpu")
    except Exception:
        # Of whatever type: the file may be anything.
        if zipfile.is_zipfile(path):
            fail(
                f"{path}: the file holds more than tensors, perhaps a whole model, and loading "
                "that may run code; write torch.save(model.state_dict(), path)."
            )
        fail(f"{path}: this is no file of torch.save.")
    for key in _INSIDE:
        if is_mapping(data) and is_mapping(data.get(key)):
            data = data[key]
    if not is_mapping(data) or not any(isinstance(value, Tensor) for value in data.values()):
        fail(f"{path}: the file holds no state dict.")
    records: dict[str, list[Any]] = {}
    for owner, metadata in (versions_in(data) or {}).items():
        for name in metadata.get("constraints", {}) if is_mapping(metadata) else ():
            record = recorded_chain(metadata, name)
            if record is not None:
                records[f"{owner}.{name}" if owner else name] = record
    return dict(data), records, {}


def _safetensors(path: Path) -> tuple[dict[str, Any], dict[str, list[Any]], dict[str, Any]]:
    try:
        state, record = weights_file.read(path)
    except (OSError, ValueError) as error:
        fail(str(error))
    records: dict[str, list[Any]] = {}
    for name, spec in record.constraints.items() if record else ():
        try:
            request = parse(spec)
            constraint: Any = request.constraint
            if request.view is not None and record:
                constraint = View(constraint, request.view, record.shapes[name], request.sizes)
            records[name] = described([constraint])
        except (ValueError, TypeError):
            # A constraint that is not registered here: its tensors are shown as they are stored.
            continue
    return state, records, dict(record.shapes) if record else {}


def _values(
    state: Mapping[str, Any], records: Mapping[str, list[Any]], shapes: Mapping[str, Any]
) -> Values:
    found = Values()
    entries: dict[str, dict[str, Any]] = {}
    for key, value in state.items():
        entry = _ENTRY.fullmatch(key)
        if entry and isinstance(value, Tensor):
            entries.setdefault(entry["owner"] + entry["name"], {})[entry["rest"]] = value
        elif isinstance(value, Tensor):
            found.tensors[key] = value
    for path, own in entries.items():
        record = records.get(path)
        shape: Any = shapes.get(path)
        try:
            if record is None:
                raise ValueError
            # A view needs the shape of the tensor, which only the model or the file knows.
            value, _ = SavedChain(record, shape).value(own)
            found.constraints[path] = built(record[-1], value.shape)
            found.tensors[path] = value.detach()
        except (ValueError, TypeError):
            found.unknown.append(path)
            prefix, _, name = path.rpartition(".")
            start = f"{prefix}.parametrizations.{name}" if prefix else f"parametrizations.{name}"
            found.tensors.update({f"{start}.{rest}": value for rest, value in own.items()})
    return found


@torch.no_grad()
def _loaded(path: Path, state: Mapping[str, Any], model: nn.Module) -> Values:
    """The values that a model has when it has loaded a state dict."""
    model = copy.deepcopy(model).eval()
    try:
        load_state_dict(model, state)
    except (RuntimeError, ValueError, TypeError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        fail(f"{path} does not fit the model: {' '.join(lines[-1:])[:400]}")
    found = Values(constraints={p: constraint for p, _, constraint in constrained_tensors(model)})
    for prefix, module in submodules(model):
        start = f"{prefix}." if prefix else ""
        own: dict[str, Any] = {**module._parameters, **module._buffers}
        if "parametrizations." not in start:
            found.tensors.update(
                {f"{start}{n}": t.detach() for n, t in own.items() if t is not None}
            )
    for place, _, _ in constrained_tensors(model):
        owner, _, name = place.rpartition(".")
        found.tensors[place] = getattr(model.get_submodule(owner), name).detach()
    return found
