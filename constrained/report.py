"""What is constrained in a model, and how well it holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from io import StringIO
from typing import Any

import torch
from torch import nn

from constrained.constraint import InfeasibleError, has_values
from constrained.select import constrained_tensors
from constrained.tolerance import tolerance


def spec(model: nn.Module) -> dict[str, dict[str, Any]]:
    """The constraints of a model as plain data, by the paths of the tensors.

    ``constrain(fresh_model, spec(model))`` applies them again; JSON and YAML can hold them.
    Tensors parametrized by foreign modules are left out.
    """
    return {path: constraint.spec() for path, _, constraint in constrained_tensors(model)}


@torch.no_grad()
def violations(model: nn.Module) -> dict[str, float]:
    """How far each constrained tensor lies from its set: path -> largest violation in its batch."""
    return {row.path: row.violation for row in _rows(model)}


@dataclass(frozen=True)
class Row:
    """One constrained tensor in a report."""

    path: str
    constraint: str
    shape: tuple[int, ...]
    violation: float
    tolerance: float
    moved: float | None

    @property
    def holds(self) -> bool:
        """Whether the violation is no more than rounding."""
        return self.violation <= self.tolerance


@dataclass(frozen=True)
class Report:
    """The constrained tensors of a model; ``print`` shows them as a table."""

    rows: tuple[Row, ...]

    def __str__(self) -> str:
        # Imported here, so that `import constrained` stays fast.
        from rich.console import Console
        from rich.table import Table

        table = Table(caption="moved: how far the tensor went when it was constrained, relative")
        for heading in ("tensor", "constraint", "shape", "violation", "holds", "moved"):
            table.add_column(heading, overflow="fold")
        for row in self.rows:
            moved = "" if row.moved is None else f"{row.moved:.2g}"
            shape = " x ".join(map(str, row.shape))
            holds = "yes" if row.holds else "NO"
            violation = f"{row.violation:.1e}"
            table.add_row(row.path, row.constraint, shape, violation, holds, moved)
        text = StringIO()
        Console(file=text, width=110).print(table if self.rows else "No tensor is constrained.")
        return text.getvalue().rstrip()


@torch.no_grad()
def report(model: nn.Module) -> Report:
    """The constrained tensors of a model: constraint, shape, violation, how far each has moved."""
    return Report(tuple(_rows(model)))


def assert_feasible(model: nn.Module) -> None:
    """Raise unless every constrained tensor lies in its set, up to rounding.

    Raises:
        InfeasibleError: naming the tensor that is farthest out, relative to its tolerance.
    """
    broken = [row for row in report(model).rows if not row.holds]
    if broken:
        worst = max(broken, key=lambda row: row.violation / (row.tolerance or 1e-300))
        others = f" ({len(broken) - 1} more tensors violate theirs)" if len(broken) > 1 else ""
        raise InfeasibleError(
            f"'{worst.path}' violates {worst.constraint} by {worst.violation:.3g}, at most "
            f"{worst.tolerance:.3g} is rounding{others}."
        )


def _rows(model: nn.Module) -> Iterator[Row]:
    for path, parametrizations, constraint in constrained_tensors(model):
        value = parametrizations.value()
        violation, allowed = 0.0, 0.0
        if value.numel() and has_values(value):
            measured = constraint.violation(value).flatten()
            granted = tolerance(value, constraint.event_dim).flatten()
            excess = measured - granted
            worst = int((excess if bool((excess > 0).any()) else measured).argmax())
            violation, allowed = float(measured[worst]), float(granted[worst])
        yield Row(
            path, repr(constraint), tuple(value.shape), violation, allowed, parametrizations.moved
        )
