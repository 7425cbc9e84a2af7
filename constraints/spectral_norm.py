"""Matrices whose largest singular value is bounded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real

import torch
import torch.nn.functional as F
from torch import Tensor

from constrained import Constraint, register
from constrained.tolerance import working_dtype
from constraints.fold import lingering
from constraints.singular import clip_singular_values
from constraints.svd import svdvals


@register("spectral_norm", aliases=("lipschitz",))
class SpectralNorm(Constraint):
    r"""Matrices that stretch no vector by more than a bound.

    **Set**: :math:`\{W \in \mathbb{R}^{n \times p} : \lVert W \rVert_2 \le c\}`, the matrices with
    largest singular value c at most: closed, convex, of dimension np. For a linear layer this
    means a Lipschitz constant of at most c.

    **Map**: the nearest member in the Frobenius norm: singular values above c are replaced by c.
    Onto the set. A matrix in the set comes back bit for bit, and its derivative is the identity, on
    the boundary too. The norm is exact at each evaluation: no state, no estimate from below.

    **Right inverse**: the matrix itself. So a matrix inside comes back as it was assigned; one that
    is outside is an error, and projected by `constrained.constrain` and `project` only.

    **Reference**: Sedghi, Gupta and Long, The singular values of convolutional layers (2019), for
    the projection as a constraint in training; Miyato, Kataoka, Koyama and Yoshida, Spectral
    normalization for generative adversarial networks (2018), where all singular values are divided
    by the largest one instead.

    `canonical` takes a parameter that an optimizer's step has led outside back to the boundary, by
    a tenth of the way: `constraints.fold.lingering` says why not all of it. Dividing by the norm
    after each step would not end at the optimum, since it shrinks all singular values, while only
    some of them are pushed outside.

    Args:
        bound: the largest norm c, greater than zero.

    Shape:
        ``(*batch, n, p)``.

    Raises:
        TypeError: if the bound is not a number.
        ValueError: if the bound is not positive and finite.

    Example:
        >>> SpectralNorm(bound=2.0).project(torch.tensor([[8.0, 0.0], [0.0, 1.0]]))
        tensor([[2., 0.],
                [0., 1.]])
    """

    keeps = (
        "symmetric",
        "skew",
        "diagonal",
        "positive_semidefinite",
    )
    event_dim = 2
    examples = (
        ({}, (1, 1)),
        ({}, (3, 3)),
        ({"bound": 0.5}, (4, 2)),
        ({"bound": 2.5}, (2, 5)),
        ({}, (1, 4)),
    )
    exempt = dict.fromkeys(
        (
            f"{order}_derivative:{point}"
            for order in ("first", "second")
            for point in ("ones", "eye", "repeated", "boundary")
        ),
        "the map has a kink on the boundary: the identity inside, a projection outside",
    )

    def __init__(self, bound: float = 1.0) -> None:
        super().__init__()
        if not isinstance(bound, Real) or isinstance(bound, bool):
            raise TypeError(f"spectral_norm: bound must be a number, got {bound!r}.")
        if not 0 < bound < math.inf:
            raise ValueError(f"spectral_norm: bound must be positive and finite, got {bound!r}.")
        self.bound = float(bound)

    def forward(self, X: Tensor) -> Tensor:
        """The nearest member in the Frobenius norm."""
        return clip_singular_values(X, self.bound)

    def right_inverse(self, value: Tensor) -> Tensor:
        """The identity."""
        return value

    def canonical(self, X: Tensor) -> tuple[Tensor]:
        """A parameter of the same element that is nearer to it."""
        with torch.no_grad():
            return (lingering(X, clip_singular_values(X, self.bound), 2),)

    def violation(self, value: Tensor) -> Tensor:
        """``max(0, norm - bound)``, the distance in the spectral norm."""
        return F.relu(svdvals(value)[..., 0] - self.bound)

    def project(self, value: Tensor) -> Tensor:
        """The nearest member in the Frobenius norm: singular values cut at the bound."""
        return clip_singular_values(value, self.bound)

    def sample(
        self,
        shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """A Gaussian matrix, scaled to a norm that is uniform between 0 and the bound."""
        dtype = dtype or torch.get_default_dtype()
        options = {"generator": generator, "dtype": working_dtype(dtype), "device": device}
        gaussian = torch.randn(tuple(shape), **options)
        norm = svdvals(gaussian)[..., :1, None]
        return (torch.rand(norm.shape, **options) * self.bound * gaussian / norm).to(dtype)

    def shape_problem(self, event: tuple[int, ...]) -> str | None:
        """An element is no empty matrix."""
        return None if min(event) > 0 else "must have at least one row and one column"

    def dimension(self, shape: Sequence[int]) -> int:
        """``n p``, that of the space of all matrices."""
        return shape[-2] * shape[-1]
