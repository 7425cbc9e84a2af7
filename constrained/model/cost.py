"""What kind of work it takes to evaluate a constraint: a rough class, found by watching it run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from constrained.constraint.base import Constraint

#: From the cheapest: work on each entry; products of matrices, or transforms; decompositions of
#: matrices, inverses and solutions of linear systems.
Cost = Literal["elementwise", "products", "decompositions"]

COSTS: tuple[Cost, ...] = get_args(Cost)

_PRODUCTS = frozenset(
    {"mm", "bmm", "addmm", "baddbmm", "addbmm", "mv", "addmv", "addr", "convolution"}
)

#: Of torch.linalg, what does not decompose.
_CHEAP = frozenset({"linalg_vector_norm", "linalg_cross", "linalg_diagonal"})

_OTHERS = frozenset(
    {"geqrf", "ormqr", "cholesky", "cholesky_solve", "triangular_solve", "lu_unpack"}
)


class _Watch(TorchDispatchMode):
    """Notes the dearest operation that runs inside.

    Args:
        small: decompositions of matrices with fewer rows or columns cost little beside products.
    """

    def __init__(self, small: int) -> None:
        super().__init__()
        self.small = small
        self.dearest = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func.namespace == "aten":
            self.dearest = max(self.dearest, self._rank(func.overloadpacket.__name__, args))
            return func(*args, **(kwargs or {}))
        # An operator of the catalogue is made of others, which are to be seen as well.
        with self:
            return func(*args, **(kwargs or {}))

    def _rank(self, name: str, args: Sequence[Any]) -> int:
        kind: Cost = "products" if name in _PRODUCTS or "_fft_" in name else "elementwise"
        decomposes = name.removeprefix("_").startswith("linalg_") and name not in _CHEAP
        if decomposes or name in _OTHERS:
            matrix = args[0]
            kind = "products" if min(matrix.shape[-2:]) < self.small else "decompositions"
        return COSTS.index(kind)


@torch.no_grad()
def cost_of(constraint: Constraint, originals: Sequence[Tensor], shape: Sequence[int]) -> Cost:
    """The class of work that a training step spends on a constraint.

    Args:
        constraint: the constraint.
        originals: its free parameters.
        shape: of one element.
    """
    with _Watch(min(shape[-2:], default=0) // 2) as watch:
        if constraint.has_canonical():
            constraint.canonical(*originals)
        constraint(*originals)
    return COSTS[watch.dearest]
