"""Matrices with zeros at given positions: diagonal, triangular, banded, block diagonal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Ge, MinLen
from torch import Tensor

from constrained import register
from constraints.bases.argument_checks import Count, is_whole
from constraints.bases.linear_space import ZeroPattern
from constraints.bases.shapes import Matrices

# Masks are computed from row and column numbers at each call. That costs less than the product that
# follows, and a constraint that stores no mask fits matrices of any size.


@register("diagonal")
class Diagonal(Matrices, ZeroPattern):
    r"""Diagonal matrices, rectangular ones too.

    **Use**: a scale of its own for each feature, in the place of a full matrix: an ablation,
    diagonal recurrences (IndRNN, S4D).

    **Set**: $\{W \in \mathbb{R}^{m \times n} : W_{ij} = 0 \text{ for } i \ne j\}$. Dimension
    $\min(m, n)$, a linear space.

    **Map**: $X \mapsto$ its diagonal, zeros elsewhere, onto the set.

    **Right inverse**: the identity.

    **Reference**: Golub and Van Loan, Matrix Computations (4th edition, 2013), section 1.2.

    Example:
        >>> Diagonal()(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        tensor([[1., 0.],
                [0., 4.]])
    """

    examples = (({}, (1, 1)), ({}, (3, 3)), ({}, (2, 4)), ({}, (4, 2)))

    def part(self, X: Tensor) -> Tensor:
        """The diagonal of X, zeros elsewhere."""
        return X.where(_offset(X) == 0, 0)

    def dimension(self, shape: Sequence[int]) -> int:
        """``min(m, n)``."""
        return min(shape[-2:])


@register("lower_triangular", aliases=("tril",))
class LowerTriangular(Matrices, ZeroPattern):
    r"""Matrices with zeros above the diagonal, rectangular ones too.

    **Use**: causal mixing over time or over a fixed order: autoregressive layers, causal token
    mixing, the factors of LU decompositions in flows.

    **Set**: $\{W \in \mathbb{R}^{m \times n} : W_{ij} = 0 \text{ for } j > i\}$. A linear space,
    whose dimension is the number of entries on and below the diagonal: $n (n + 1) / 2$ if it is
    square.

    **Map**: $X \mapsto$ its lower triangle, zeros elsewhere, onto the set.

    **Right inverse**: the identity.

    **Reference**: Golub and Van Loan, Matrix Computations (4th edition, 2013), section 1.2.

    Example:
        >>> LowerTriangular()(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        tensor([[1., 0.],
                [3., 4.]])
    """

    examples = (({}, (1, 1)), ({}, (3, 3)), ({}, (2, 4)), ({}, (4, 2)))

    def part(self, X: Tensor) -> Tensor:
        """The lower triangle of X."""
        return X.tril()

    def dimension(self, shape: Sequence[int]) -> int:
        """The number of entries on and below the diagonal."""
        return _entries_below(*shape[-2:])


@register("upper_triangular", aliases=("triu",))
class UpperTriangular(Matrices, ZeroPattern):
    r"""Matrices with zeros below the diagonal, rectangular ones too.

    **Use**: the other factor of an LU or QR decomposition, and influences that run from later to
    earlier entries.

    **Set**: $\{W \in \mathbb{R}^{m \times n} : W_{ij} = 0 \text{ for } i > j\}$. A linear space,
    whose dimension is the number of entries on and above the diagonal: $n (n + 1) / 2$ if it is
    square.

    **Map**: $X \mapsto$ its upper triangle, zeros elsewhere, onto the set.

    **Right inverse**: the identity.

    **Reference**: Golub and Van Loan, Matrix Computations (4th edition, 2013), section 1.2.

    Example:
        >>> UpperTriangular()(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        tensor([[1., 2.],
                [0., 4.]])
    """

    examples = (({}, (1, 1)), ({}, (3, 3)), ({}, (2, 4)), ({}, (4, 2)))

    def part(self, X: Tensor) -> Tensor:
        """The upper triangle of X."""
        return X.triu()

    def dimension(self, shape: Sequence[int]) -> int:
        """The number of entries on and above the diagonal."""
        return _entries_below(*reversed(shape[-2:]))


@register("banded", aliases=("band",))
class Banded(Matrices, ZeroPattern):
    r"""Matrices with zeros outside of a band along the diagonal, rectangular ones too.

    **Use**: local interactions on a line: tridiagonal dynamics, neighbours in a chain, smoothing
    filters at the borders.

    **Set**: $\{W \in \mathbb{R}^{m \times n} : W_{ij} = 0 \text{ for } \lvert i - j \rvert > w\}$.
    A linear space, whose dimension is the number of entries in the band.

    **Map**: $X \mapsto$ its band, zeros elsewhere, onto the set.

    **Right inverse**: the identity.

    **Reference**: Golub and Van Loan, Matrix Computations (4th edition, 2013), section 1.2.

    Args:
        width: how far the band reaches to both sides of the diagonal, $w$: 0 for diagonal matrices,
            1 for tridiagonal ones.

    Raises:
        ValueError: if ``width`` is negative.

    Example:
        >>> Banded(width=1)(torch.ones(3, 3))
        tensor([[1., 1., 0.],
                [1., 1., 1.],
                [0., 1., 1.]])
    """

    examples = (
        ({"width": 0}, (1, 1)),
        ({"width": 1}, (4, 4)),
        ({"width": 1}, (2, 5)),
        ({"width": 2}, (5, 3)),
    )

    def __init__(self, width: Annotated[int, Ge(0)]) -> None:
        super().__init__()
        if not is_whole(width) or width < 0:
            raise ValueError(f"banded: width must be a whole number, 0 or more, got {width!r}.")
        self.width = width

    def part(self, X: Tensor) -> Tensor:
        """The band of X."""
        return X.where(_offset(X).abs() <= self.width, 0)

    def dimension(self, shape: Sequence[int]) -> int:
        """The number of entries in the band."""
        m, n = shape[-2:]
        return sum(max(0, min(n, i + self.width + 1) - max(0, i - self.width)) for i in range(m))


@register("block_diagonal")
class BlockDiagonal(ZeroPattern):
    r"""Matrices of square blocks along the diagonal.

    **Use**: groups of features that do not mix: heads, experts, independent subsystems, grouped
    linear layers.

    **Set**: $\{\operatorname{diag}(W_1, \dots, W_k) : W_i \text{ of shape } s_i \times s_i\}$.
    Dimension $s_1^2 + \dots + s_k^2$, a linear space.

    **Map**: $X \mapsto$ its blocks, zeros elsewhere, onto the set.

    **Right inverse**: the identity.

    **Reference**: Golub and Van Loan, Matrix Computations (4th edition, 2013), section 1.3.

    Args:
        sizes: the numbers of rows of the blocks, $s_1, \dots, s_k$.

    Raises:
        ValueError: if there are no sizes, or one is not a positive whole number.

    Example:
        >>> BlockDiagonal(sizes=[1, 2])(torch.ones(3, 3))
        tensor([[1., 0., 0.],
                [0., 1., 1.],
                [0., 1., 1.]])
    """

    event_dim = 2
    examples = (
        ({"sizes": [1]}, (1, 1)),
        ({"sizes": [2, 1]}, (3, 3)),
        ({"sizes": [2, 2, 2]}, (6, 6)),
    )

    def __init__(self, sizes: Annotated[Sequence[Count], MinLen(1)]) -> None:
        super().__init__()
        if not sizes or not all(is_whole(size) and size > 0 for size in sizes):
            raise ValueError(
                f"block_diagonal: sizes must be whole numbers, 1 or more, got {sizes!r}."
            )
        self.sizes = list(sizes)

    def part(self, X: Tensor) -> Tensor:
        """The blocks of X."""
        sizes = torch.tensor(self.sizes, device=X.device)
        block = torch.arange(len(self.sizes), device=X.device).repeat_interleave(
            sizes, output_size=sum(self.sizes)
        )
        return X.where(block.unsqueeze(-1) == block, 0)

    def dimension(self, shape: Sequence[int]) -> int:
        """The number of entries in the blocks."""
        del shape
        return sum(size**2 for size in self.sizes)

    def shape_problem(self, event: tuple[int, ...]) -> str | None:
        """An element is a square matrix with as many rows as all blocks together."""
        rows = sum(self.sizes)
        if event[-2] == event[-1] == rows:
            return None
        return f"must be a square matrix of {rows} rows, the sum of the sizes"


def _offset(X: Tensor) -> Tensor:
    """``j - i`` for each entry of a matrix."""
    rows, columns = (torch.arange(n, device=X.device) for n in X.shape[-2:])
    return columns - rows.unsqueeze(-1)


def _entries_below(m: int, n: int) -> int:
    return sum(min(i + 1, n) for i in range(m))
