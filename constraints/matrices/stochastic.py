"""Matrices whose rows, or whose columns, are vectors of probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from constrained import Constraint, register
from constraints.math.logits import inner, logits, probabilities
from constraints.vectors.simplex import Simplex

_ROWS = Simplex()


_EXEMPT = dict.fromkeys(
    (f"no_dead_directions:{point}" for point in ("eye", "repeated", "boundary")),
    "the boundary is the limit of softmax at infinity: its derivative there is as small as the "
    "smallest entries",
)


@register("row_stochastic", aliases=("stochastic", "transition_matrix", "row_stochastic_matrix"))
class RowStochastic(Constraint):
    r"""Matrices whose rows are vectors of probabilities: the transition matrices of Markov chains.

    **Set**: :math:`\{W \in \mathbb{R}^{m \times n} : W_{ij} \ge 0, \sum_j W_{ij} = 1\}`. Dimension
    m (n - 1), closed.

    **Map**: softmax of each row, onto the interior.

    **Right inverse**: log(W), a zero being taken for eps / n.

    **Reference**: as for `Simplex`.

    Shape:
        ``(*batch, m, n)``.

    Example:
        >>> RowStochastic()(torch.zeros(2, 4))
        tensor([[0.2500, 0.2500, 0.2500, 0.2500],
                [0.2500, 0.2500, 0.2500, 0.2500]])
    """

    event_dim = 2
    examples = (({}, (1, 1)), ({}, (3, 3)), ({}, (2, 4)), ({}, (4, 1)), ({}, (1, 3)))
    expected_failures: ClassVar[dict[str, str]] = _EXEMPT

    def forward(self, X: Tensor) -> Tensor:
        """Softmax of each row."""
        return probabilities(X)

    def right_inverse(self, value: Tensor) -> Tensor:
        """``log(W)``."""
        return logits(value)

    def violation(self, value: Tensor) -> Tensor:
        """The largest violation of a row."""
        return _ROWS.violation(value).amax(-1)

    def project(self, value: Tensor) -> Tensor:
        """The nearest point in the Frobenius norm."""
        return _ROWS.project(value)

    def inwards(self, value: Tensor, share: float) -> Tensor:
        """Rows whose least entry is ``share`` of the mean entry."""
        return inner(value, share)

    def sample(
        self,
        shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Independent rows, uniform on the simplex."""
        self.check_shape(shape)
        return _ROWS.sample(shape, generator=generator, dtype=dtype, device=device)

    def dimension(self, shape: Sequence[int]) -> int:
        """``m (n - 1)``."""
        return shape[-2] * (shape[-1] - 1)

    def shape_problem(self, event: tuple[int, ...]) -> str | None:
        """An element is no empty matrix."""
        return _shape_problem(event)


@register("column_stochastic", aliases=("left_stochastic", "column_stochastic_matrix"))
class ColumnStochastic(Constraint):
    r"""Matrices whose columns are vectors of probabilities.

    **Set**: :math:`\{W \in \mathbb{R}^{m \times n} : W_{ij} \ge 0, \sum_i W_{ij} = 1\}`. Dimension
    (m - 1) n, closed.

    **Map**: softmax of each column, onto the interior.

    **Right inverse**: log(W), a zero being taken for eps / m.

    **Reference**: as for `Simplex`.

    Shape:
        ``(*batch, m, n)``.

    Example:
        >>> ColumnStochastic()(torch.zeros(2, 3))
        tensor([[0.5000, 0.5000, 0.5000],
                [0.5000, 0.5000, 0.5000]])
    """

    event_dim = 2
    examples = (({}, (1, 1)), ({}, (3, 3)), ({}, (4, 2)), ({}, (4, 1)), ({}, (1, 3)))
    expected_failures: ClassVar[dict[str, str]] = _EXEMPT

    def forward(self, X: Tensor) -> Tensor:
        """Softmax of each column."""
        return probabilities(X.mT).mT

    def right_inverse(self, value: Tensor) -> Tensor:
        """``log(W)``."""
        return logits(value.mT).mT.contiguous()

    def violation(self, value: Tensor) -> Tensor:
        """The largest violation of a column."""
        return _ROWS.violation(value.mT).amax(-1)

    def project(self, value: Tensor) -> Tensor:
        """The nearest point in the Frobenius norm."""
        return _ROWS.project(value.mT).mT

    def inwards(self, value: Tensor, share: float) -> Tensor:
        """Columns whose least entry is ``share`` of the mean entry."""
        return inner(value.mT, share).mT

    def sample(
        self,
        shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Independent columns, uniform on the simplex."""
        self.check_shape(shape)
        *batch, m, n = shape
        rows = _ROWS.sample((*batch, n, m), generator=generator, dtype=dtype, device=device)
        return rows.mT.contiguous()

    def dimension(self, shape: Sequence[int]) -> int:
        """``(m - 1) n``."""
        return (shape[-2] - 1) * shape[-1]

    def shape_problem(self, event: tuple[int, ...]) -> str | None:
        """An element is no empty matrix."""
        return _shape_problem(event)


def _shape_problem(event: tuple[int, ...]) -> str | None:
    return None if min(event) > 0 else "must have at least one row and one column"
