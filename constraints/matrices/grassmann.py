"""Subspaces, represented by orthonormal bases."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from constrained import register
from constrained.constraint.sampling import RandomNumbers
from constraints.bases.expected_failures import failing
from constraints.bases.shapes import Matrices
from constraints.math.orthonormal import orthonormality_error
from constraints.math.polar import polar


@register("grassmann", aliases=("grassmannian", "subspace"))
class Grassmann(Matrices):
    r"""Subspaces of a given dimension, represented by orthonormal bases.

    **Use**: learned subspaces: principal components, subspace tracking, projections onto a few
    dimensions, where the loss does not depend on the basis.

    **Set**: $\{W \in \mathbb{R}^{n \times p} : W^\top W = I\}$, the subspaces of dimension $p$ of
    $\mathbb{R}^n$, where $W$ and $W Q$, for an orthogonal $Q$, stand for the same subspace. For
    $n < p$ it is $W W^\top = I$, and rows take the place of columns. The subspaces are a closed
    manifold of dimension $p (n - p)$.

    **Map**: $X \mapsto \operatorname{polar}(B + (I - B B^\top) X)$, where $B$ is a constant member.
    Changes of $X$ within the subspace of $B$ have no effect, so that no gradient and no momentum
    has a component along them. The map reaches one basis of every subspace that contains no vector
    orthogonal to all of $B$. These are all but a set of measure zero; the others are limits.

    **Right inverse**: $X = 0$, and $B$ is the matrix itself.

    **Reference**: Absil, Mahony and Sepulchre, Optimization Algorithms on Matrix Manifolds (2008),
    sections 3.4.4 and 3.6.2, for horizontal directions; their example 4.1.5 for a retraction like
    this one.

    The loss must depend on the subspace alone, as that of principal components does. For a loss
    that depends on the basis take `orthogonal`.

    Example:
        >>> grassmann = Grassmann()
        >>> B = torch.tensor([[1.0], [0.0]])
        >>> grassmann(torch.tensor([[5.0], [1.0]]), B)
        tensor([[0.7071],
                [0.7071]])
    """

    frozen = (1,)
    examples = (({}, (1, 1)), ({}, (3, 1)), ({}, (5, 2)), ({}, (2, 5)), ({}, (3, 3)))
    expected_failures = failing(
        "its loss depends on the basis, which stays as near as possible to where it starts: only "
        "the subspace is free",
        "adam_reaches_the_optimum",
    )

    def forward(self, X: Tensor, B: Tensor) -> Tensor:
        """``polar(B + (I - B B') X)``."""
        if X.shape[-2] < X.shape[-1]:
            return self._tall(X.mT, B.mT).mT.contiguous()
        return self._tall(X, B)

    def _tall(self, X: Tensor, B: Tensor) -> Tensor:
        if B.shape[-2] == B.shape[-1]:
            # There is only one subspace, so the derivative is exactly zero.
            return polar(B) + 0 * X
        across = X - B @ (B.mT @ X)
        # Projected twice: for a large X one projection leaves a rounding error along B.
        return polar(B + (across - B @ (B.mT @ across)))

    def right_inverse(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """``(0, W)``."""
        return torch.zeros_like(value), value

    def tangent(self, value: Tensor, vector: Tensor) -> Tensor:
        """``V - W W' V``, and ``V - V W' W`` if W is wide: what changes the subspace.

        It is the horizontal space at the basis W, the tangent space of the quotient.

        Reference:
            Edelman, Arias and Smith, The geometry of algorithms with orthogonality constraints
            (SIAM Journal on Matrix Analysis and Applications 20, 1998), section 2.5.
        """
        if value.shape[-2] < value.shape[-1]:
            return vector - (vector @ value.mT) @ value
        return vector - value @ (value.mT @ vector)

    def violation(self, value: Tensor) -> Tensor:
        """The largest entry of ``|W' W - I|``, or of ``|W W' - I|`` if W is wide."""
        return orthonormality_error(value)

    def project(self, value: Tensor) -> Tensor:
        """The nearest orthonormal basis in the Frobenius norm, the polar factor."""
        return polar(value)

    def draw(self, shape: tuple[int, ...], random: RandomNumbers) -> Tensor:
        """Uniformly distributed subspaces and bases: the polar factor of a Gaussian matrix."""
        return polar(random.normal(shape))

    def dimension(self, shape: Sequence[int]) -> int:
        """``p (n - p)``, where p is the smaller side: that of the manifold of subspaces."""
        n, p = max(shape[-2:]), min(shape[-2:])
        return p * (n - p)
