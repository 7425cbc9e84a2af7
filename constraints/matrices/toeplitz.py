"""Matrices that are constant along diagonals: Toeplitz, circulant, Hankel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from constrained import register
from constraints.bases.linear_space import LinearSpace
from constraints.bases.shapes import Matrices, SquareMatrices


@register("toeplitz")
class Toeplitz(Matrices, LinearSpace):
    r"""Matrices that are constant along every diagonal, rectangular ones too.

    **Use**: what depends on the distance alone: stationary kernels, relative positions,
    convolutions of sequences, token mixing in time.

    **Set**: $\{W \in \mathbb{R}^{m \times n} : W_{ij} = c_{j-i}\}$. Dimension $m + n - 1$, a linear
    space. Convolutions of sequences and stationary kernels have such matrices.

    **Map**: $X \mapsto$ the mean of $X$ along each diagonal, onto the set.

    **Right inverse**: the identity.

    **Reference**: Golub and Van Loan, Matrix Computations (4th edition, 2013), section 4.7.

    Example:
        >>> Toeplitz()(torch.tensor([[1.0, 2.0], [3.0, 5.0]]))
        tensor([[3., 2.],
                [3., 3.]])
    """

    examples = (({}, (1, 1)), ({}, (3, 3)), ({}, (2, 4)), ({}, (4, 1)))

    def part(self, X: Tensor) -> Tensor:
        """The mean along each diagonal."""
        rows, columns = _places(X)
        m, n = X.shape[-2:]
        return _means(X, columns - rows + (m - 1), m + n - 1)

    def averaged(self, scale: Tensor) -> Tensor:
        """The mean of the scale along the same lines."""
        return self.part(scale)

    def dimension(self, shape: Sequence[int]) -> int:
        """``m + n - 1``."""
        return shape[-2] + shape[-1] - 1


@register("hankel")
class Hankel(Matrices, LinearSpace):
    r"""Matrices that are constant along every antidiagonal, rectangular ones too.

    **Use**: identification of linear systems, where the matrix of the impulse response has this
    form, and singular spectrum analysis of a time series.

    **Set**: $\{W \in \mathbb{R}^{m \times n} : W_{ij} = c_{i+j}\}$. Dimension $m + n - 1$, a linear
    space.

    **Map**: $X \mapsto$ the mean of $X$ along each antidiagonal, onto the set.

    **Right inverse**: the identity.

    **Reference**: Golub and Van Loan, Matrix Computations (4th edition, 2013), section 4.7.

    Example:
        >>> Hankel()(torch.tensor([[1.0, 2.0], [4.0, 5.0]]))
        tensor([[1., 3.],
                [3., 5.]])
    """

    examples = (({}, (1, 1)), ({}, (3, 3)), ({}, (2, 4)), ({}, (4, 1)))

    def part(self, X: Tensor) -> Tensor:
        """The mean along each antidiagonal."""
        rows, columns = _places(X)
        m, n = X.shape[-2:]
        return _means(X, rows + columns, m + n - 1)

    def averaged(self, scale: Tensor) -> Tensor:
        """The mean of the scale along the same lines."""
        return self.part(scale)

    def dimension(self, shape: Sequence[int]) -> int:
        """``m + n - 1``."""
        return shape[-2] + shape[-1] - 1


@register("circulant")
class Circulant(SquareMatrices, LinearSpace):
    r"""Square matrices each of whose rows is the row above, shifted circularly by one place.

    **Use**: periodic signals and circular convolutions as a dense matrix, compressed layers that
    the Fourier transform makes diagonal.

    **Set**: $\{W \in \mathbb{R}^{n \times n} : W_{ij} = c_{(j - i) \operatorname{mod} n}\}$.
    Dimension $n$, a linear space: the matrices of circular convolutions, which the Fourier
    transform makes diagonal.

    **Map**: $X \mapsto$ the mean of $X$ along each diagonal that continues around the end, onto the
    set.

    **Right inverse**: the identity.

    **Reference**: Golub and Van Loan, Matrix Computations (4th edition, 2013), section 4.8.

    Example:
        >>> Circulant()(torch.tensor([[1.0, 2.0], [4.0, 5.0]]))
        tensor([[3., 3.],
                [3., 3.]])
    """

    examples = (({}, (1, 1)), ({}, (2, 2)), ({}, (5, 5)))

    def part(self, X: Tensor) -> Tensor:
        """The mean along each circular diagonal."""
        rows, columns = _places(X)
        n = X.shape[-1]
        return _means(X, (columns - rows) % n, n)

    def averaged(self, scale: Tensor) -> Tensor:
        """The mean of the scale along the same lines."""
        return self.part(scale)

    def dimension(self, shape: Sequence[int]) -> int:
        """``n``."""
        return shape[-1]


def _places(X: Tensor) -> tuple[Tensor, Tensor]:
    m, n = X.shape[-2:]
    return torch.arange(m, device=X.device).unsqueeze(-1), torch.arange(n, device=X.device)


def _means(X: Tensor, line: Tensor, lines: int) -> Tensor:
    """Each entry of X replaced by the mean of its line.

    Args:
        X: shape ``(*batch, m, n)``.
        line: which line each entry is on; shape ``(m, n)``.
        lines: how many lines there are.
    """
    line = line.flatten()
    flat = X.flatten(-2)
    count = torch.zeros(lines, dtype=X.dtype, device=X.device)
    count = count.index_add(0, line, torch.ones_like(line, dtype=X.dtype))
    sums = torch.zeros((*flat.shape[:-1], lines), dtype=X.dtype, device=X.device)
    mean = sums.index_add(-1, line, flat) / count
    # Corrected by the mean of the differences, so that the mean of equal numbers is exact.
    rest = flat - mean.index_select(-1, line)
    mean = mean + sums.index_add(-1, line, rest) / count
    return mean.index_select(-1, line).reshape(X.shape)
