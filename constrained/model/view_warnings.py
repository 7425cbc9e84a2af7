"""Warnings where a constraint without a view may not be what was meant: convolutions, gates."""

from __future__ import annotations

import math
import warnings

from constrained.constraint.base import Constraint
from constrained.constraint.named_views import CONVOLUTIONS, GATES, TRANSPOSED
from constrained.constraint.spec import Request
from constrained.model.changes import TensorChange, check_each_change
from constrained.parametrized.call_stack import user_stacklevel

#: Sets to which a stack of members does not belong: nobody means them for all gates together.
_ISOMETRIES = ("orthogonal", "almost_orthogonal", "unitary")


@check_each_change
def warn_of_stacked_gates(change: TensorChange, request: Request) -> None:
    """Warn that the recurrent kernels of all gates are constrained as one matrix.

    There is a warning for orthogonal matrices and the like only. A bound on a norm or a rank is
    often meant for the whole.

    Args:
        change: the change that constrains the tensor.
        request: the constraint and its view.
    """
    place, shape = change.places[0], tuple(change.original.shape)
    module, constraint = place.module, request.constraint
    gates = next((n for kind, n in GATES.items() if n > 1 and isinstance(module, kind)), None)
    if gates is None or not place.name.startswith("weight_hh") or request.view is not None:
        return
    if not isinstance(constraint, Constraint) or constraint.name not in _ISOMETRIES:
        return
    warnings.warn(
        f"'{place.path}' holds the kernels of {gates} gates, and {constraint!r} constrains all of "
        f"it as one matrix of {shape[0]} x {shape[1]}. For {gates} matrices of "
        f"{shape[0] // gates} x {shape[1]}, one for each gate, give view='gates'; "
        "view='h k -> h k' says that the one is meant.",
        UserWarning,
        stacklevel=user_stacklevel(),
    )


@check_each_change
def warn_of_small_elements(change: TensorChange, request: Request) -> None:
    """Warn that the elements are smaller than the filters of a convolution, which are mostly meant.

    For a set of vectors or of matrices, the last one or two dimensions of a kernel make an element:
    rows or slices of its taps. For a set of numbers, or of whole tensors, there is no such doubt.

    Args:
        change: the change that constrains the tensor.
        request: the constraint and its view.
    """
    place, shape = change.places[0], tuple(change.original.shape)
    module, constraint = place.module, request.constraint
    if not isinstance(module, CONVOLUTIONS) or len(shape) < 3:
        return
    if not isinstance(constraint, Constraint) or request.view is not None:
        return
    event, taps = constraint.event_dim, math.prod(shape[2:])
    if event not in (1, 2):
        return
    groups, axes = module.groups, " ".join("dhw"[-(len(shape) - 2) :])
    transposed = isinstance(module, TRANSPOSED)
    inputs, outputs = shape[1], shape[0]
    if transposed:
        # Its kernel is (in, out / groups, *taps).
        inputs, outputs = shape[0] // groups, shape[1] * groups
    length, count = inputs * taps, math.prod(shape[:-event])
    if event == 1:
        small = f"{count} vectors of {shape[-1]}"
        meant = f"{outputs} vectors of {length}, one for each filter,"
        if count == outputs:
            return
    else:
        small = f"{count} matrices of {shape[-2]} x {shape[-1]}"
        matrix = f"{outputs // groups} x {length}"
        meant = f"{groups} matrices of {matrix}, one for each group,"
        if groups == 1:
            meant = f"one matrix of {matrix}"
    same = f"i o {axes}" if transposed else f"o i {axes}"
    warnings.warn(
        f"'{place.path}' is a kernel of shape {shape}, of which {constraint!r} constrains "
        f"{small}. "
        f"For {meant} give view='conv'; view='{same} -> {same}' says that the small ones are "
        "meant.",
        UserWarning,
        stacklevel=user_stacklevel(),
    )
