"""What is drawn, and into which axes."""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from constrained.constraint.base import Constraint
from constrained.constraint.spec import parse
from constrained.parametrized.module_class import base_class
from constrained.parametrized.tensor_locations import constrained_tensors
from constrained.seeing.spectrum import seen

#: The most vectors that a picture shows.
POINTS = 5000


class Subject(NamedTuple):
    """What is drawn: elements as their constraint sees them."""

    value: Tensor
    constraint: Constraint | None
    title: str


def subject_of(what: Any, by: Any) -> Subject:
    """The tensor of a model, or a tensor and its constraint.

    Raises:
        TypeError: if it is neither.
        ValueError: if the model has no such tensor.
    """
    if isinstance(what, nn.Module):
        return _of_model(what, by)
    if not isinstance(what, Tensor):
        raise TypeError(f"A picture is of a model or a tensor, got {type(what).__name__}.")
    if by is None:
        return Subject(what.detach(), None, "")
    constraint = by if isinstance(by, Constraint) else parse(by).build()
    if not isinstance(constraint, Constraint):
        raise TypeError(f"A picture is of a Constraint, got {type(constraint).__name__}.")
    constraint, value = seen(constraint, what.detach())
    return Subject(value, constraint, repr(constraint))


def _of_model(model: nn.Module, path: Any) -> Subject:
    found = {p: (holder, c) for p, holder, c in constrained_tensors(model)}
    if path is None and len(found) == 1:
        path = next(iter(found))
    if path not in found:
        known = ", ".join(repr(p) for p in list(found)[:5]) + (", ..." if len(found) > 5 else "")
        asked = "no path is given" if path is None else f"there is no constrained tensor {path!r}"
        raise ValueError(f"{asked}: {base_class(model).__name__} has {known or 'none'}.")
    holder, constraint = found[path]
    with torch.no_grad():
        inner, value = seen(constraint, holder.forward())
    return Subject(value.detach(), inner, f"{path}: {inner!r}")


def _finite(subject: Subject, picture: str) -> Tensor:
    value = subject.value
    if value.is_meta:
        raise ValueError(f"{picture}: {subject.title or 'the tensor'} has no numbers.")
    if not value.numel() or not bool(torch.isfinite(value).all()):
        raise ValueError(
            f"{picture}: {subject.title or 'the tensor'} is empty, or holds NaN or infinity."
        )
    return value.cpu() if value.is_complex() else value.cpu().double()


def matrices_of(subject: Subject, picture: str) -> Tensor:
    """The elements of a subject, as matrices of finite numbers; a `ValueError` if they are none."""
    dims = 2 if subject.constraint is None else subject.constraint.event_dim
    if dims != 2 or subject.value.ndim < 2:
        raise ValueError(
            f"{picture}: the elements of {subject.title or 'the tensor'} are no matrices: its "
            f"shape is {tuple(subject.value.shape)}."
        )
    return _finite(subject, picture)


def vectors_of(subject: Subject, picture: str) -> Tensor:
    """The vectors of three finite numbers of a subject; a `ValueError` if they are none."""
    if not subject.value.ndim or subject.value.shape[-1] != 3 or subject.value.is_complex():
        raise ValueError(
            f"{picture}: the last dimension of {subject.title or 'the tensor'} must have 3 real "
            f"entries, but its shape is {tuple(subject.value.shape)}."
        )
    return _finite(subject, picture).reshape(-1, 3)[:POINTS]


def axes(ax: Any, **settings: Any) -> Any:
    """Axes to draw into: those that are given, or those of a new figure."""
    if ax is not None:
        return ax
    try:
        pyplot: Any = import_module("matplotlib.pyplot")
    except ImportError:
        raise ImportError(
            "constrained.plot draws with matplotlib, which is not installed: "
            "pip install 'constrained-layers[plot]'."
        ) from None
    return pyplot.figure(layout="constrained").add_subplot(**settings)
