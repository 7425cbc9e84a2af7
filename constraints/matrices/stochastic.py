"""Matrices whose rows, or whose columns, are vectors of probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from constrained import register
from constrained.constraint.linear_form import LinearForm, equations
from constrained.constraint.sampling import RandomNumbers
from constraints.bases.expected_failures import failing
from constraints.bases.shapes import Matrices
from constraints.math.logits import inner, logits, probabilities
from constraints.vectors.simplex import Simplex

_ROWS = Simplex()


class Stochastic(Matrices):
    """Base of matrices whose rows, or whose columns, are vectors of probabilities."""

    expected_failures = failing(
        "the boundary is the limit of softmax at infinity: its derivative there is as small as the "
        "smallest entries",
        "no_dead_directions",
        at=("eye", "repeated", "boundary"),
    )

    def rows(self, W: Tensor) -> Tensor:
        """The matrix with the vectors of probabilities as its rows. It is its own inverse."""
        return W

    def forward(self, X: Tensor) -> Tensor:
        """Softmax of each vector."""
        return self.rows(probabilities(self.rows(X)))

    def right_inverse(self, value: Tensor) -> Tensor:
        """``log(W)``."""
        return self.rows(logits(self.rows(value))).contiguous()

    def violation(self, value: Tensor) -> Tensor:
        """The largest violation of a vector."""
        return _ROWS.violation(self.rows(value)).amax(-1)

    def slack(self, value: Tensor) -> Tensor:
        """The least entry."""
        return value.amin((-2, -1))

    def project(self, value: Tensor) -> Tensor:
        """The nearest point in the Frobenius norm."""
        return self.rows(_ROWS.project(self.rows(value)))

    def project_scaled(self, value: Tensor, scale: Tensor) -> Tensor:
        """The projection of each row, or column, onto the simplex."""
        nearest = _ROWS.project_scaled(self.rows(value), self.rows(scale))
        return self.rows(nearest).contiguous()

    def linear_form(self, shape: Sequence[int]) -> LinearForm:
        """Entries of zero or more, and the sum of each vector of probabilities."""
        places = self.rows(torch.arange(torch.Size(shape).numel()).reshape(tuple(shape)))
        sums = torch.zeros(len(places), places.numel()).scatter_(1, places, 1.0)
        return equations(sums, torch.ones(len(places)), low=0.0)

    def inwards(self, value: Tensor, share: float) -> Tensor:
        """Small entries raised to ``share`` of the mean entry, or a little above."""
        return self.rows(inner(self.rows(value), share))


@register("row_stochastic", aliases=("stochastic", "transition_matrix", "row_stochastic_matrix"))
class RowStochastic(Stochastic):
    r"""Matrices whose rows are vectors of probabilities: the transition matrices of Markov chains.

    **Use**: transition matrices of Markov chains and hidden Markov models; layers each of whose
    outputs is a weighted mean of the inputs.

    **Set**: $\{W \in \mathbb{R}^{m \times n} : W_{ij} \ge 0, \sum_j W_{ij} = 1\}$. Dimension
    $m (n - 1)$, closed.

    **Map**: softmax of each row, $W_{ij} = \exp(X_{ij}) / \sum_k \exp(X_{ik})$, onto the interior.

    **Right inverse**: $W \mapsto \log W$, where a zero is replaced by $\varepsilon / n$.

    **Reference**: as for `Simplex`.

    Shape:
        ``(*batch, m, n)``.

    Example:
        >>> import torch
        >>> RowStochastic()(torch.zeros(2, 4))
        tensor([[0.2500, 0.2500, 0.2500, 0.2500],
                [0.2500, 0.2500, 0.2500, 0.2500]])
    """

    examples = (({}, (1, 1)), ({}, (3, 3)), ({}, (2, 4)), ({}, (4, 1)), ({}, (1, 3)))

    def draw(self, shape: tuple[int, ...], random: RandomNumbers) -> Tensor:
        """Independent rows, uniform on the simplex."""
        return _ROWS.draw(shape, random)

    def dimension(self, shape: Sequence[int]) -> int:
        """``m (n - 1)``."""
        return shape[-2] * (shape[-1] - 1)


@register("column_stochastic", aliases=("left_stochastic", "column_stochastic_matrix"))
class ColumnStochastic(Stochastic):
    r"""Matrices whose columns are vectors of probabilities.

    **Use**: mixing weights in the columns: topic models, the emissions of a hidden Markov model in
    the orientation of ``x @ W.T``, memberships.

    **Set**: $\{W \in \mathbb{R}^{m \times n} : W_{ij} \ge 0, \sum_i W_{ij} = 1\}$. Dimension
    $(m - 1) n$, closed.

    **Map**: softmax of each column, $W_{ij} = \exp(X_{ij}) / \sum_k \exp(X_{kj})$, onto the
    interior.

    **Right inverse**: $W \mapsto \log W$, where a zero is replaced by $\varepsilon / m$.

    **Reference**: as for `Simplex`.

    Shape:
        ``(*batch, m, n)``.

    Example:
        >>> import torch
        >>> ColumnStochastic()(torch.zeros(2, 3))
        tensor([[0.5000, 0.5000, 0.5000],
                [0.5000, 0.5000, 0.5000]])
    """

    examples = (({}, (1, 1)), ({}, (3, 3)), ({}, (4, 2)), ({}, (4, 1)), ({}, (1, 3)))

    def rows(self, W: Tensor) -> Tensor:
        """The transpose."""
        return W.mT

    def draw(self, shape: tuple[int, ...], random: RandomNumbers) -> Tensor:
        """Independent columns, uniform on the simplex."""
        *batch, m, n = shape
        return _ROWS.draw((*batch, n, m), random).mT.contiguous()

    def dimension(self, shape: Sequence[int]) -> int:
        """``(m - 1) n``."""
        return (shape[-2] - 1) * shape[-1]
