"""`plan`: what `constrain` would do to a model, and all that is wrong with a config; a dry run."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from constrained.atomic.interrupts import defer_interrupts
from constrained.attached.attached_constraint import Mode, OnNonfinite
from constrained.constraint.base import Constraint
from constrained.constraint.errors import grouped
from constrained.constraint.plain_data import is_list, is_mapping
from constrained.constraint.view import View
from constrained.model.changes import AttachedChange, Change, TensorChange
from constrained.model.config import Rule
from constrained.model.cost import Cost, cost_of
from constrained.model.prepare import prepare_all, rules_of
from constrained.model.start import Init
from constrained.model.tables import as_html, as_text, shape
from constrained.model.tables import grouped as grouped_layers
from constrained.model.targets import Choice, select
from constrained.parametrized.tensor_locations import locations
from constrained.registration.outside_owners import check_owners


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor that would be constrained.

    Attributes:
        path: where it is in the model.
        shape: its shape; empty if it has none yet.
        rule: the target that counts for it.
        overridden: other targets that match it, which that one overrides.
        constraint: what it would be constrained by, as it is written.
        elements: how many elements of the set it holds, and the shape of one.
        moved: how far it would go, relative to its norm; None if that is unknown.
        flat: the share of its elements at which the derivative of the map vanishes: an optimizer
            would hardly move them.
        parameters: how many numbers its free parameters are; None if that is unknown.
        cost: the kind of work that a training step spends on it; None if that is unknown.
        tied: the other paths of the same tensor.
        frozen: whether it has ``requires_grad=False``.
    """

    path: str
    shape: tuple[int, ...]
    rule: str
    overridden: tuple[str, ...]
    constraint: str
    elements: tuple[int, tuple[int, ...]] | None
    moved: float | None
    flat: float
    parameters: int | None
    cost: Cost | None
    tied: tuple[str, ...]
    frozen: bool


@dataclass(frozen=True, repr=False)
class Plan:
    """What `constrain` would do. It prints, and shows in a notebook, as a table.

    In the table equal layers share a row: tensors of which all but the numbers in their paths, and
    how far they move, is equal. The row has the largest of these moves.

    Attributes:
        rows: the tensors that would be constrained, in the order of the model.
        errors: all that is wrong; `constrain` would raise them.
        warnings: what `constrain` would warn of.
        exceptions: the paths of the tensors that a rule leaves unconstrained.
        skipped: for each target with a ``where``: the paths that it does not take, and why.
        unused: the targets that have no effect, since others override them everywhere.
        unconstrained: how many parameters of the model no rule constrains.
        rules: the rule that takes effect, by the path of each tensor; ``constrain(model, plan)``
            applies them.
    """

    rows: tuple[PlannedTensor, ...]
    errors: tuple[Exception, ...]
    warnings: tuple[str, ...]
    exceptions: tuple[str, ...]
    skipped: Mapping[str, Mapping[str, str]]
    unused: tuple[str, ...]
    unconstrained: int
    rules: Mapping[str, Rule]

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data, which JSON can hold.

        Example:
            >>> import torch, constrained
            >>> found = constrained.plan(torch.nn.Linear(3, 2), {"weight": "orthogonl"})
            >>> len(found.to_dict()["errors"]), found.to_dict()["tensors"]
            (1, [])
        """
        return {
            "tensors": [_with_lists(asdict(row)) for row in self.rows],
            "errors": [str(error) for error in self.errors],
            "warnings": list(self.warnings),
            "exceptions": list(self.exceptions),
            "skipped": {target: dict(paths) for target, paths in self.skipped.items()},
            "unused": list(self.unused),
            "unconstrained": self.unconstrained,
        }

    def notes(self) -> list[str]:
        """What is to be known beside the table, in sentences; errors last."""
        found: list[str] = []
        for target, paths in self.skipped.items():
            (first, reason), *more = paths.items()
            others = f" and {len(more)} more" if more else ""
            found.append(f"Skipped by '{target}': '{first}'{others} ({reason.rstrip('.')}).")
        if self.exceptions:
            found.append(f"Left unconstrained by a rule: {_some(self.exceptions)}.")
        if self.unused:
            found.append(f"Without effect, since other rules override them: {_some(self.unused)}.")
        if self.unconstrained:
            one = self.unconstrained == 1
            what = "parameter of the model is" if one else "parameters of the model are"
            found.append(f"{self.unconstrained} {what} not constrained.")
        found += (f"WARNING {sentence}" for sentence in self.warnings)
        return [*found, *(f"ERROR {sentence}" for sentence in grouped(self.errors))]

    def __str__(self) -> str:
        return as_text(_HEADINGS, self._table(), self._below())

    def _repr_html_(self) -> str:
        return as_html(_HEADINGS, self._table(), self._below())

    def __repr__(self) -> str:
        counts = len(self.rows), len(self.errors)
        return f"<Plan of {counts[0]} tensors, with {counts[1]} errors; print it for the table>"

    def _table(self) -> list[tuple[str, ...]]:
        return [_cells(label, rows) for label, rows in grouped_layers(self.rows, _key)]

    def _below(self) -> list[str]:
        known = {
            "elements": any(row.elements is not None for row in self.rows),
            "moves": any(row.moved is not None for row in self.rows),
        }
        legend = [f"{heading}: {_MEANINGS[heading]}." for heading in known if known[heading]]
        found = [*legend, *self.notes()]
        return found or ([] if self.rows else ["No tensor would be constrained."])


_HEADINGS = (
    "tensor",
    "shape",
    "rule",
    "constraint",
    "elements",
    "moves",
    "parameters",
    "cost",
    "notes",
)


#: What the columns say whose headings do not tell.
_MEANINGS = {
    "elements": "how many members of the set the tensor holds, and the shape of one",
    "moves": "how far the tensor would go, relative to its norm",
}


def _key(row: PlannedTensor) -> PlannedTensor:
    """What is equal in the rows of equal layers."""
    return replace(row, path="", moved=None if row.moved is None else 0.0, flat=0.0)


def _cells(label: str, rows: Sequence[PlannedTensor]) -> tuple[str, ...]:
    """The text of rows of equal layers under each of the headings."""
    row = rows[0]
    moved = [each.moved for each in rows if each.moved is not None]
    # NaN is larger than any number.
    farthest = max(moved, key=lambda x: (math.isnan(x), x), default=None)
    flat = max(each.flat for each in rows)
    notes = [f"overrides {_some(row.overridden)}"] if row.overridden else []
    notes += [f"tied with {_some(row.tied)}"] if row.tied else []
    notes += ["frozen"] if row.frozen else []
    notes += [f"{flat:.1%} hardly moves"] if flat else []
    return (
        label,
        shape(row.shape, known=row.elements is not None),
        row.rule,
        row.constraint,
        _of_set(row.elements),
        "" if farthest is None else f"{farthest:.2g}",
        "" if row.parameters is None else f"{row.parameters:,}",
        row.cost or "",
        "; ".join(notes),
    )


def _of_set(elements: tuple[int, tuple[int, ...]] | None) -> str:
    """``32 numbers``, or ``3 of 8 x 8``."""
    if elements is None:
        return ""
    count, event = elements
    return f"{count} of {shape(event)}" if event else f"{count} number{'s' * (count != 1)}"


def plan(
    module: nn.Module,
    target: str | Mapping[str, Any] | object,
    constraint: Any = None,
    *,
    view: str | None = None,
    init: Init = "keep",
    mode: Mode = "parametrize",
    on_nonfinite: OnNonfinite = "raise",
    **arguments: Any,
) -> Plan:
    """What `constrain` would do with the same arguments; the model is not changed.

    It finds all errors at once: unknown names, arguments and paths with the nearest ones, shapes
    that do not fit, tensors that are constrained already, tied to other models, or wrapped.

    Args:
        module: the model.
        target: as in `constrain`.
        constraint: as in `constrain`.
        view: as in `constrain`.
        init: as in `constrain`.
        mode: likewise.
        on_nonfinite: likewise.
        arguments: as in `constrain`.

    Returns:
        A `Plan`, which prints as a table. ``constrain(module, plan)`` applies it, and raises what
        is wrong with it.

    Example:
        >>> import torch
        >>> from constrained import constrain, plan
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 2))
        >>> found = plan(model, {"**.weight": "orthogonal", "1.weight": None})
        >>> [row.path for row in found.rows], found.exceptions, found.errors
        (['0.weight'], ('1.weight',), ())
        >>> model = constrain(model, found)
    """
    settings = {"init": init, "mode": mode, "on_nonfinite": on_nonfinite}
    rules, errors = rules_of(module, target, constraint, view, arguments, settings)
    with (
        defer_interrupts(),
        warnings.catch_warnings(record=True) as caught,
        # The random state is put back: `constrain` will draw the same members.
        torch.random.fork_rng(_gpus(module)),
    ):
        warnings.simplefilter("always")
        selection = select(module, rules, Rule.why_not)
        errors += selection.errors
        rows: list[PlannedTensor] = []
        for choice, found in prepare_all(selection):
            if isinstance(found, Exception):
                errors.append(found)
                continue
            try:
                check_owners(module, [(found.places, len(found.tensors()))])
            except ValueError as error:
                errors.append(error)
            rows.append(_planned(choice, found))
    effective = {choice.path: choice.value for choice in selection.choices}
    exceptions = tuple(path for path, rule in effective.items() if rule.request is None)
    parameters = {id(at.tensor) for at in locations(module).values() if at.is_parameter}
    chosen = {id(choice.places[0].tensor) for choice in selection.choices if choice.value.request}
    return Plan(
        tuple(rows),
        tuple(errors),
        tuple(str(warning.message) for warning in caught),
        exceptions,
        selection.skipped,
        tuple(selection.unused),
        len(parameters - chosen),
        effective,
    )


def _gpus(module: nn.Module) -> list[torch.device]:
    """The CUDA devices of a model, whose random numbers members may be drawn from."""
    return list({at.device for at in module.parameters() if at.device.type == "cuda"})


@torch.no_grad()
def _planned(choice: Choice[Rule], change: Change) -> PlannedTensor:
    first, *others = choice.places
    tensor: Any = first.tensor
    moved = elements = parameters = cost = None
    shape: tuple[int, ...] = ()
    flat, total = change.flat
    if isinstance(change, TensorChange):
        parametrizations = change.parametrizations
        constraint = parametrizations.constraint()
        shape, moved = tuple(change.original.shape), parametrizations.moved
        written = parametrizations.described()
        if constraint is not None:
            originals, frozen = parametrizations.pending(), constraint.frozen
            parameters = sum(p.numel() for i, p in enumerate(originals) if i not in frozen)
            elements = _elements(constraint, shape)
            cost = cost_of(constraint, shape)
    elif isinstance(change, AttachedChange):
        constraint, shape, moved = change.constraint, tuple(change.original.shape), change.moved
        written = f"{constraint!r} by mode={change.request.mode!r}"
        parameters, elements = change.original.numel(), _elements(constraint, shape)
        cost = cost_of(constraint, shape)
    else:
        written = f"{change!r}, once it has a shape"
    return PlannedTensor(
        first.path,
        shape,
        choice.target,
        choice.overridden,
        written,
        elements,
        moved,
        flat / total if total else 0.0,
        parameters,
        cost,
        tuple(place.path for place in others),
        not tensor.requires_grad,
    )


def _elements(constraint: Constraint, shape: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    """How many elements a tensor holds, as its view shows them, and the shape of one."""
    seen = torch.Size(shape)
    if isinstance(constraint, View):
        seen, constraint = constraint.seen_shape(), constraint.constraint
    event = len(seen) if constraint.event_dim is None else constraint.event_dim
    batch = len(seen) - event
    return seen[:batch].numel(), tuple(seen[batch:])


def _some(names: Sequence[str]) -> str:
    """The first of some names, in quotes, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(map(repr, names[:3]))}{more}"


def _with_lists(data: Any) -> Any:
    """Data with lists in place of tuples, which JSON does not have."""
    if is_mapping(data):
        return {key: _with_lists(value) for key, value in data.items()}
    return [_with_lists(value) for value in data] if is_list(data) else data
