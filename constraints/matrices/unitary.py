"""Complex matrices with orthonormal columns or rows."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from constrained import register
from constrained.constraint.sampling import RandomNumbers
from constraints.bases.expected_failures import NO_POLAR_FACTOR, no_derivative
from constraints.bases.retraction import Retraction
from constraints.bases.shapes import Matrices
from constraints.math.orthonormal import orthonormality_error
from constraints.math.polar import polar, polar_factor, polar_gradient


@register("unitary", aliases=("complex_stiefel", "semi_unitary", "unitary_group"))
class Unitary(Matrices, Retraction):
    r"""Unitary matrices; orthonormal columns if tall, orthonormal rows if wide.

    **Use**: complex recurrent networks (uRNN), quantum gates and circuits, mixing of Fourier modes.

    **Set**: $\{W \in \mathbb{C}^{n \times p} : W^* W = I\}$ for $n \ge p$, and $W W^* = I$ for
    $n < p$: closed, of dimension $2 n p - p^2$ over the real numbers ($p$ the smaller side),
    connected. A real tensor counts as a complex one without imaginary part, so that the set is that
    of `Orthogonal`.

    **Map**: $X \mapsto \operatorname{polar}(X) = X (X^* X)^{-1/2}$, the nearest member in the
    Frobenius norm. Onto the set; as for `Orthogonal` with ``map="polar"``.

    **Right inverse**: the matrix itself.

    **Reference**: Higham, Functions of Matrices (2008), chapter 8; Arjovsky, Shah and Bengio,
    Unitary evolution recurrent neural networks (ICML 2016), for its use.

    Shape:
        ``(*batch, n, p)``, complex or real.

    Example:
        >>> import torch
        >>> Unitary()(torch.tensor([[2.0j, 0.0], [0.0, -3.0]]))
        tensor([[ 0.+1.j,  0.+0.j],
                [ 0.+0.j, -1.+0.j]])
    """

    value_index = 0
    complex = True
    examples = (({}, (2, 2)), ({}, (3, 3)), ({}, (4, 2)), ({}, (2, 3)))
    expected_failures = no_derivative(NO_POLAR_FACTOR, "zero_params")

    def forward(self, X: Tensor) -> Tensor:
        """The polar factor."""
        return polar(X)

    def canonical(self, X: Tensor) -> tuple[Tensor]:
        """The unitary matrix itself."""
        return (polar_factor(X),)

    def pullback(self, value: Tensor, gradient: Tensor, X: Tensor) -> tuple[Tensor]:
        """The projection onto the tangent space, where X is unitary."""
        return (polar_gradient(X, value, gradient),)

    def tangent(self, value: Tensor, vector: Tensor) -> Tensor:
        """The orthogonal projection onto the tangent space."""
        return polar_gradient(value, value, vector)

    def violation(self, value: Tensor) -> Tensor:
        """The largest entry of ``|W* W - I|``, or of ``|W W* - I|`` if W is wide."""
        return orthonormality_error(value)

    def draw(self, shape: tuple[int, ...], random: RandomNumbers) -> Tensor:
        """Uniformly distributed (Haar measure): the polar factor of a Gaussian matrix.

        Without a dtype, matrices are of torch's default dtype, which is real.
        """
        return polar(random.normal(shape))

    def dimension(self, shape: Sequence[int]) -> int:
        """``2 n p - p^2``, where p is the smaller side, of complex matrices."""
        n, p = max(shape[-2:]), min(shape[-2:])
        return 2 * n * p - p * p
