"""What is constrained in a model, and how far each tensor is from its set."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from io import StringIO
from typing import Any

import torch
from torch import Tensor, nn

from constrained.constraint.base import Constraint
from constrained.constraint.errors import InfeasibleError, OutOfRangeError
from constrained.parametrized.deferred import deferred_tensors
from constrained.parametrized.evaluation_mode import without_side_effects
from constrained.parametrized.parametrization_list import ParametrizationList, read
from constrained.parametrized.tensor_locations import constrained_tensors, parametrized_tensors
from constrained.torch_internals.linalg import LinAlgError
from constrained.torch_internals.tensors import has_values


def spec(model: nn.Module) -> dict[str, dict[str, Any]]:
    """The constraints of a model as plain data, by the paths of the tensors.

    ``constrain(fresh_model, spec(model))`` applies them again; JSON and YAML can hold them.
    Tensors parametrized by foreign modules are left out. Those of lazy modules, which will be
    constrained when they have a shape, come last.

    Args:
        model: the model.

    Example:
        >>> import torch, constrained
        >>> model = constrained.constrain(torch.nn.Linear(3, 3), "weight", "ball(radius=2.0)")
        >>> constrained.spec(model)
        {'weight': {'name': 'ball', 'radius': 2.0}}
    """
    found = {path: constraint.spec() for path, _, constraint in constrained_tensors(model)}
    later = {path: item.spec() for path, item in deferred_tensors(model)}
    return found | {path: plain for path, plain in later.items() if plain is not None}


@torch.no_grad()
def violations(model: nn.Module) -> dict[str, float]:
    """How far each constrained tensor lies from its set: path -> largest violation in its batch.

    Args:
        model: the model.

    Returns:
        For each path a number: ``inf`` if the tensor holds NaN or infinity, and NaN if it holds no
        numbers at all, as on the meta device.

    Example:
        >>> import torch, constrained
        >>> model = constrained.constrain(torch.nn.Linear(3, 3), "weight", "positive")
        >>> constrained.violations(model)
        {'weight': 0.0}
    """
    return {row.path: row.violation for row in _rows(model) if row.violation is not None}


@dataclass(frozen=True)
class Row:
    """One parametrized tensor in a report.

    Attributes:
        path: where it is in the model.
        constraint: what it is parametrized by.
        shape: the shape of its value.
        violation: the largest one in its batch; NaN if the value has no numbers, as on the meta
            device; None if nothing is known, because a foreign module parametrizes it, or because
            it belongs to a lazy module and has no shape yet.
        tolerance: the largest violation that counts as rounding.
        moved: how far it moved when it was constrained, relative to its norm; None if unknown.
        flat: the share of its elements that lie where the derivative of the map vanishes, next to
            the boundary: an optimizer hardly moves them.
    """

    path: str
    constraint: str
    shape: tuple[int, ...]
    violation: float | None
    tolerance: float
    moved: float | None
    flat: float = 0.0

    @property
    def holds(self) -> bool | None:
        """Whether the violation is no more than rounding; None if nobody can tell."""
        if self.violation is None or math.isnan(self.violation):
            return None
        return math.isfinite(self.violation) and self.violation <= self.tolerance


@dataclass(frozen=True)
class Report:
    """The constrained tensors of a model. It prints, and shows in a notebook, as a table.

    Attributes:
        rows: one for each parametrized tensor, in the order of the model's modules.
    """

    rows: tuple[Row, ...]

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
        if not self.rows:
            return f"<p>{_EMPTY}</p>"
        headings = "".join(f"<th>{heading}</th>" for heading in _HEADINGS)
        rows = "".join(
            f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in _cells(row))}</tr>"
            for row in self.rows
        )
        return (
            f"<table><caption>{html.escape(_CAPTION)}</caption><thead><tr>{headings}</tr></thead>"
            f"<tbody>{rows}</tbody></table>"
        )

    def __str__(self) -> str:
        # Imported here, so that `import constrained` stays fast.
        from rich.console import Console
        from rich.table import Table

        table = Table(caption=_CAPTION)
        for heading in _HEADINGS:
            table.add_column(heading, overflow="fold")
        for row in self.rows:
            table.add_row(*_cells(row))
        text = StringIO()
        Console(file=text, width=110).print(table if self.rows else _EMPTY)
        return "\n".join(map(str.rstrip, text.getvalue().splitlines())).rstrip()


_HEADINGS = ("tensor", "constraint", "shape", "violation", "holds", "moved", "flat")

_CAPTION = (
    "moved: how far the tensor went when it was constrained, relative to its norm; "
    "flat: the share of its elements that an optimizer hardly moves"
)

_EMPTY = "No tensor is constrained."


def _cells(row: Row) -> tuple[str, ...]:
    """The text of a row under each of the headings."""
    return (
        row.path,
        row.constraint,
        " x ".join(map(str, row.shape)),
        "" if row.holds is None else f"{row.violation:.1e}",
        {True: "yes", False: "NO", None: "?"}[row.holds],
        "" if row.moved is None else f"{row.moved:.2g}",
        f"{row.flat:.0%}" if row.flat == 0 or row.flat >= 0.005 else "< 1%",
    )


@torch.no_grad()
def report(model: nn.Module) -> Report:
    """The constrained tensors of a model: constraint, shape, violation, how far each has moved.

    Tensors that others parametrized, by a ``register_parametrization``, have a row as well. A
    foreign module declares no set, so that its values cannot be judged: the column ``holds`` shows
    ``?``.

    Args:
        model: the model.

    Returns:
        A `Report`, which prints as a table; `Report.to_dict` gives plain data.

    Example:
        >>> import torch, constrained
        >>> model = constrained.constrain(torch.nn.Linear(3, 3), "weight", "orthogonal")
        >>> constrained.report(model).rows[0].holds
        True
    """
    return Report(tuple(_rows(model)))


def assert_feasible(model: nn.Module) -> None:
    """Raise unless every constrained tensor lies in its set, up to rounding.

    Such a model is called feasible. `Constraint.contains` asks the same of a value, and `Row.holds`
    of a single tensor.

    Args:
        model: the model.

    Raises:
        InfeasibleError: names the tensor that is farthest from its set, relative to the tolerance.

    Example:
        >>> import torch, constrained
        >>> model = constrained.constrain(torch.nn.Linear(3, 3), "weight", "orthogonal")
        >>> constrained.assert_feasible(model)
    """
    broken = [row for row in report(model).rows if row.holds is False]
    if broken:
        worst = max(broken, key=lambda row: _relative(row))
        others = f" ({len(broken) - 1} more tensors violate theirs)" if len(broken) > 1 else ""
        if worst.violation == math.inf:
            raise InfeasibleError(
                f"'{worst.path}' under {worst.constraint} holds NaN or infinite values, or finite "
                f"ones too large to be measured{others}."
            )
        raise InfeasibleError(
            f"'{worst.path}' violates {worst.constraint} by {worst.violation:.3g}, at most "
            f"{worst.tolerance:.3g} is rounding{others}."
        )


def _relative(row: Row) -> float:
    if row.violation is None or row.violation == math.inf:
        return math.inf
    return row.violation / (row.tolerance or math.ulp(0.0))


def _rows(model: nn.Module) -> Iterator[Row]:
    for path, parametrizations in parametrized_tensors(model):
        is_own = isinstance(parametrizations, ParametrizationList)
        constraint = parametrizations.constraint() if is_own else None
        moved = parametrizations.moved if is_own else None
        if constraint is None:
            # A foreign module may write into itself when it is evaluated.
            with without_side_effects(parametrizations):
                shape = tuple(read(parametrizations, path).shape)
            foreign = " then ".join(type(m).__name__ for m in parametrizations.children())
            yield Row(path, foreign, shape, None, 0.0, moved)
            continue
        shape: Any = parametrizations.shape
        violation, allowed, flat = math.inf, 0.0, 0.0
        try:
            value = read(parametrizations, path)
            shape = value.shape
            violation, allowed, flat = _measured(constraint, value)
        except (OutOfRangeError, LinAlgError):
            # The numbers are too large to compute with. All other tensors still get their rows.
            violation = math.inf
        yield Row(path, repr(constraint), tuple(shape), violation, allowed, moved, flat)
    for path, item in deferred_tensors(model):
        yield Row(path, f"{item!r}, once it has a shape", (), None, 0.0, None)


def _measured(constraint: Constraint, value: Tensor) -> tuple[float, float, float]:
    """The largest violation in a batch, its tolerance, and the share of elements that are flat."""
    if not has_values(value):
        return math.nan, 0.0, 0.0
    if not value.numel():
        return 0.0, 0.0, 0.0
    measured, granted = map(torch.flatten, constraint.measured(value))
    # A violation that overflows is outside, even if its tolerance overflows as well.
    excess = torch.where(torch.isfinite(measured), measured - granted, torch.inf)
    worst = int((excess if bool((excess > 0).any()) else measured).argmax())
    flat = float(constraint.flat(value).double().mean())
    return float(measured[worst]), float(granted[worst]), flat
