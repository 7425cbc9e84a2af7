"""``diff``: two checkpoints beside each other."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from constrained.command_line import checkpoint
from constrained.command_line.checkpoint import Values
from constrained.command_line.models import Imports, Model, import_all, model_of
from constrained.command_line.output import Json, print_json
from constrained.constraint.base import Constraint
from constrained.model.tables import as_text
from constrained.torch_internals import linalg

#: The spectrum of a larger matrix, by its smaller side, takes too long.
_LARGEST = 2048


@dataclass(frozen=True)
class Difference:
    """A tensor that two checkpoints have.

    Attributes:
        path: where it is in the model.
        shapes: in both; None where it is missing.
        constraint: of the second one, or else of the first; "" if none is known.
        violations: by that constraint, in both; None if it is not known.
        holds: whether they are no more than rounding.
        distance: the norm of the difference, relative to the first one; None if there is none.
        spectra: the largest and the smallest singular value, in both, of a matrix, or of a kernel
            as the matrix of its filters.
    """

    path: str
    shapes: tuple[tuple[int, ...] | None, tuple[int, ...] | None]
    constraint: str
    violations: tuple[float | None, float | None]
    holds: tuple[bool | None, bool | None]
    distance: float | None
    spectra: tuple[tuple[float, float] | None, tuple[float, float] | None]


def diff(
    first: Annotated[Path, typer.Argument(help="A checkpoint: of torch.save, or safetensors.")],
    second: Annotated[Path, typer.Argument(help="Another one of the same model.")],
    model: Annotated[str | None, Model] = None,
    imports: Imports = None,
    as_json: Json = False,
) -> None:
    """Compare two checkpoints, tensor by tensor.

    The table has the violation of each tensor by its constraint, the distance between both values
    relative to the first, and the largest and the smallest singular value.

    Values of constrained tensors are computed from their free parameters. By which constraints, the
    files tell; for files without such a record, and for tensors with a view in those of torch.save,
    give the model.
    """
    import_all(imports)
    made = None if model is None else model_of(model)
    one, other = checkpoint.read(first, made), checkpoint.read(second, made)
    # In the order of the model.
    paths = list(dict.fromkeys([*one.tensors, *other.tensors]))
    rows = [_compared(path, one, other) for path in paths]
    unknown = sorted({*one.unknown, *other.unknown})
    if as_json:
        print_json({"tensors": [asdict(row) for row in rows], "unknown": unknown})
        return
    changed = [row for row in rows if row.distance != 0 or False in row.holds]
    same = len(rows) - len(changed)
    notes = [f"{same} tensor{' is' if same == 1 else 's are'} the same in both."]
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        notes.append(
            f"How the value of '{unknown[0]}'{more} follows from its parameters is not recorded: "
            "give --model."
        )
    typer.echo(as_text(_HEADINGS, [_cells(row) for row in changed], notes))


def _compared(path: str, one: Values, other: Values) -> Difference:
    a, b = one.tensors.get(path), other.tensors.get(path)
    constraint = other.constraints.get(path) or one.constraints.get(path)
    (before, holds), (after, still) = _measured(constraint, a), _measured(constraint, b)
    return Difference(
        path,
        (None if a is None else tuple(a.shape), None if b is None else tuple(b.shape)),
        "" if constraint is None else repr(constraint),
        (before, after),
        (holds, still),
        None if a is None or b is None or a.shape != b.shape else _distance(a, b),
        (_spectrum(a), _spectrum(b)),
    )


def _measured(
    constraint: Constraint | None, value: Tensor | None
) -> tuple[float | None, bool | None]:
    """The largest violation of a value, and whether it is no more than rounding."""
    if constraint is None or value is None or not value.numel():
        return None, None
    try:
        violation, allowed = constraint.measured(value)
    except ValueError:
        # Of another shape than the constraint takes.
        return None, None
    return float(violation.max()), bool((violation <= allowed).all())


def _distance(one: Tensor, other: Tensor) -> float:
    one, other = _precise(one), _precise(other)
    size = float(linalg.vector_norm(one))
    return float(linalg.vector_norm(one - other)) / (size or 1.0)


def _spectrum(value: Tensor | None) -> tuple[float, float] | None:
    if value is None or value.ndim < 2 or not value.numel():
        return None
    matrix = _precise(value).flatten(1)
    if min(matrix.shape) > _LARGEST or not bool(torch.isfinite(matrix).all()):
        return None
    found = linalg.svdvals(matrix)
    return float(found[0]), float(found[-1])


def _precise(value: Tensor) -> Tensor:
    return value.to(torch.complex128 if value.is_complex() else torch.float64)


_HEADINGS = ("tensor", "shape", "constraint", "violation", "distance", "singular values", "notes")


def _cells(row: Difference) -> tuple[str, ...]:
    (a, b), (before, after) = row.shapes, row.spectra
    shapes = [_shape(each) for each in (a, b) if each is not None]
    notes = "in the first only" if b is None else "in the second only" if a is None else ""
    spectra = [f"{each[0]:.3g} .. {each[1]:.3g}" for each in (before, after) if each]
    violations = [
        f"{each:.1e}{'' if holds else ' (outside)'}"
        for each, holds in zip(row.violations, row.holds, strict=True)
        if each is not None
    ]
    return (
        row.path,
        " -> ".join(dict.fromkeys(shapes)),
        row.constraint,
        " -> ".join(dict.fromkeys(violations)),
        "" if row.distance is None else f"{row.distance:.2g}",
        " -> ".join(dict.fromkeys(spectra)),
        notes,
    )


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "number"
