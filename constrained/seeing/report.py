"""What is constrained in a model, and how it holds: one row for each tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from constrained.constraint.base import FLAT, Constraint
from constrained.constraint.errors import OutOfRangeError
from constrained.constraint.tolerance import tolerance
from constrained.model.cost import Cost, cost_of
from constrained.parametrized.module_class import base_class
from constrained.parametrized.tensor_locations import resolve
from constrained.seeing import table
from constrained.seeing.lipschitz import NOT_ASKED, Lipschitz, is_layered, lipschitz
from constrained.seeing.measured import Measured, measured_tensors
from constrained.seeing.reading import drift
from constrained.seeing.row import Row
from constrained.seeing.spectrum import seen, spectrum_of
from constrained.torch_internals.linalg import LinAlgError
from constrained.torch_internals.tensors import has_values


@dataclass(frozen=True, repr=False)
class Report:
    """The constrained tensors of a model. It prints, and shows in a notebook, as a table.

    In the table equal layers share a row: tensors of one constraint, shape and class of module,
    whose paths differ in numbers only. Each of its columns has the worst of their values. A column
    is there if it says something about one of the rows.

    Attributes:
        rows: one for each parametrized tensor, in the order of the model's modules.
        lipschitz: an upper bound of the network's Lipschitz constant in the 2-norm, or why there is
            none; see `constrained.seeing.lipschitz.lipschitz`.
        layered: whether the network is one known layer or an ``nn.Sequential``; the table says only
            then why there is no bound.
    """

    rows: tuple[Row, ...]
    lipschitz: Lipschitz = NOT_ASKED
    layered: bool = True

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """The rows as plain data: path -> the other attributes of `Row` by name, with ``holds``.

        NaN and infinity stay such floats. JSON has none: ``json.dumps`` writes them as ``NaN`` and
        ``Infinity``.

        Example:
            >>> import torch, constrained
            >>> model = constrained.constrain(torch.nn.Linear(3, 2), "weight", "positive")
            >>> row = constrained.report(model).to_dict()["weight"]
            >>> row["constraint"], row["shape"], row["violation"], row["holds"]
            ('positive()', [2, 3], 0.0, True)
        """
        plain: dict[str, dict[str, Any]] = {}
        for row in self.rows:
            data: dict[str, Any] = {**asdict(row), "shape": list(row.shape), "holds": row.holds}
            plain[data.pop("path")] = data
        return plain

    def _repr_html_(self) -> str:
        return table.as_html(self.rows, self._notes())

    def __str__(self) -> str:
        return table.as_text(self.rows, self._notes())

    def __repr__(self) -> str:
        outside = sum(row.holds is False for row in self.rows)
        return (
            f"<Report of {len(self.rows)} tensors, {outside} of them outside of their sets; print "
            "it for the table>"
        )

    def _notes(self) -> list[str]:
        bound, reason = self.lipschitz
        if bound is not None:
            return [f"Lipschitz constant of the network in the 2-norm: at most {bound:.4g}."]
        return (
            [f"No bound of the network's Lipschitz constant: {reason}."]
            if reason and self.layered
            else []
        )


def report(
    model: nn.Module,
    *,
    start: Mapping[str, Tensor] | None = None,
    spectrum: bool | None = None,
) -> Report:
    """The constrained tensors of a model: constraint, shape, violation, how far each has moved.

    Tensors that others parametrized, by a ``register_parametrization``, have a row as well. A
    foreign module declares no set, so that its values cannot be judged: the column ``holds`` shows
    ``?``.

    Args:
        model: the model.
        start: earlier values of its tensors by their paths, as `constrained.baked_state_dict` gave
            them or `constrained.Monitor` keeps them. Then the report tells how far each tensor has
            drifted from there.
        spectrum: whether to tell the condition and the rank: of all matrices (True), of none
            (False), or of those with up to 1024 rows or columns (None), since the singular values
            of larger ones take seconds.

    Returns:
        A `Report`, which prints as a table; `Report.to_dict` gives plain data.

    Raises:
        ValueError: if an earlier value has another shape than the tensor has.

    Example:
        >>> import torch, constrained
        >>> model = constrained.constrain(torch.nn.Linear(3, 3), "weight", "orthogonal")
        >>> constrained.report(model).rows[0].holds
        True
    """
    costs: dict[tuple[str, tuple[int, ...]], Cost | None] = {}
    rows: list[Row] = []
    for tensor in measured_tensors(model):
        before = (start or {}).get(tensor.path)
        known = _known(tensor, spectrum) if tensor.constraint else {}
        if tensor.constraint:
            key = tensor.described, tensor.shape
            if key not in costs:
                costs[key] = cost_of(tensor.constraint, tensor.shape)
            known["cost"] = costs[key]
        if before is not None and tensor.value is not None:
            known["drift"] = _drift(tensor.path, tensor.value, before)
        rows.append(
            Row(
                path=tensor.path,
                constraint=tensor.described,
                shape=tensor.shape,
                violation=tensor.violation,
                tolerance=tensor.tolerance,
                moved=tensor.moved,
                module=_owner(model, tensor.path),
                **known,
            )
        )
    return Report(tuple(rows), lipschitz(model) if rows else NOT_ASKED, is_layered(model))


@torch.no_grad()
def _known(tensor: Measured, spectrum: bool | None) -> dict[str, Any]:
    """What is told of a constrained tensor beside its violation."""
    constraint, value = tensor.constraint, tensor.value
    if constraint is None or value is None or not has_values(value) or not value.numel():
        return {}
    known: dict[str, Any] = {}
    found = None
    try:
        if not tensor.free:
            known["flat"] = float(constraint.flat(value).double().mean())
        known |= _boundary(constraint, value)
        if spectrum is not False:
            found = spectrum_of(constraint, value, always=bool(spectrum))
    except (OutOfRangeError, LinAlgError):
        # Finite numbers too large to compute with: the violation is infinite then, too.
        return known
    if found is not None:
        known["condition"], known["rank"] = found.condition, found.rank
    return known


def _boundary(constraint: Constraint, value: Tensor) -> dict[str, float]:
    constraint, value = seen(constraint, value)
    slack = constraint.slack(value)
    if slack is None:
        return {}
    # A parameter that training has moved beyond a bound has a value up to 2^-20 of that inside.
    near = tolerance(value, constraint.event_dim).clamp(min=FLAT * float(value.abs().max()))
    at = slack <= near
    return {"slack": float(slack.min()), "at_boundary": float(at.double().mean())}


def _drift(path: str, value: Tensor, before: Tensor) -> float:
    if before.shape != value.shape:
        raise ValueError(
            f"'{path}' has the shape {tuple(value.shape)}, but the earlier value that it is "
            f"compared with has {tuple(before.shape)}: give the values of this model."
        )
    return drift(value, before)


def _owner(model: nn.Module, path: str) -> str:
    try:
        return base_class(resolve(model, path)[0]).__name__
    except ValueError:
        # A GraphModule of torch.fx holds lists in plain modules, beside no tensor of their name.
        return ""
