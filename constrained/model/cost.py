"""What kind of work it takes to evaluate a constraint: a rough class, found by watching it run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from constrained.constraint.base import Constraint
from constrained.torch_internals.operations import watched

#: From the cheapest: work on each entry; products of matrices, or transforms; decompositions of
#: matrices, inverses and solutions of linear systems.
Cost = Literal["elementwise", "products", "decompositions"]

COSTS: tuple[Cost, ...] = get_args(Cost)

_PRODUCTS = frozenset(
    {"mm", "bmm", "addmm", "baddbmm", "addbmm", "mv", "addmv", "addr", "convolution"}
)

#: The functions of torch.linalg that decompose nothing.
_NO_DECOMPOSITIONS = frozenset({"linalg_vector_norm", "linalg_cross", "linalg_diagonal"})

#: Decompositions that are no functions of torch.linalg.
_OTHER_DECOMPOSITIONS = frozenset(
    {"geqrf", "ormqr", "cholesky", "cholesky_solve", "triangular_solve", "lu_unpack"}
)


@torch.no_grad()
def cost_of(
    constraint: Constraint, originals: Sequence[Tensor], element_shape: Sequence[int]
) -> Cost | None:
    """The class of work that a training step spends on a constraint; None if it is unknown.

    Args:
        constraint: the constraint.
        originals: its free parameters.
        element_shape: the shape of one element.
    """
    # Decompositions of much smaller matrices cost little beside products of the whole.
    small = min(element_shape[-2:], default=0) // 2
    dearest = 0

    def note(name: str, args: Sequence[Any]) -> None:
        nonlocal dearest
        dearest = max(dearest, COSTS.index(_kind(name, args, small)))

    watch = watched(note)
    if watch is None:
        return None
    with watch:
        if constraint.has_canonical():
            constraint.canonical(*originals)
        constraint(*originals)
    return COSTS[dearest]


def _kind(name: str, args: Sequence[Any], small: int) -> Cost:
    decomposes = name.removeprefix("_").startswith("linalg_") and name not in _NO_DECOMPOSITIONS
    if decomposes or name in _OTHER_DECOMPOSITIONS:
        return "products" if min(args[0].shape[-2:]) < small else "decompositions"
    return "products" if name in _PRODUCTS or "fft_" in name else "elementwise"
