"""Complex matrices with orthonormal columns or rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from constrained import Constraint, register
from constrained.constraint.tolerance import working_dtype
from constraints.bases.linear_space import empty
from constraints.math.polar import defect, polar, polar_factor, polar_gradient


@register("unitary", aliases=("complex_stiefel", "semi_unitary", "unitary_group"))
class Unitary(Constraint):
    r"""Unitary matrices; orthonormal columns if tall, orthonormal rows if wide.

    **Set**: :math:`\{W \in \mathbb{C}^{n \times p} : W^* W = I\}` for :math:`n \ge p`, and
    :math:`W W^* = I` for :math:`n < p`: closed, of dimension :math:`2 n p - p^2` over the real
    numbers (p the smaller side), connected. A real tensor is taken for a complex one without
    imaginary part: then the set is that of `Orthogonal`.

    **Map**: X -> the nearest member, the polar factor of X. Onto the set; as for `Orthogonal` with
    ``map="polar"``.

    **Right inverse**: the matrix itself.

    **Reference**: Higham, Functions of Matrices (2008), chapter 8; Arjovsky, Shah and Bengio,
    Unitary evolution recurrent neural networks (ICML 2016), for its use.

    Shape:
        ``(*batch, n, p)``, complex or real.

    Example:
        >>> Unitary()(torch.tensor([[2.0j, 0.0], [0.0, -3.0]]))
        tensor([[ 0.+1.j,  0.+0.j],
                [ 0.+0.j, -1.+0.j]])
    """

    event_dim = 2
    value_index = 0
    complex = True
    examples = (({}, (2, 2)), ({}, (3, 3)), ({}, (4, 2)), ({}, (2, 3)))
    expected_failures = dict.fromkeys(
        ("first_derivative:zero_params", "second_derivative:zero_params"),
        "the polar factor has no limit at X = 0, nor at any matrix that has not full rank",
    )

    def forward(self, X: Tensor) -> Tensor:
        """The polar factor."""
        return polar(X)

    def right_inverse(self, value: Tensor) -> Tensor:
        """The matrix itself."""
        return value

    def canonical(self, X: Tensor) -> tuple[Tensor]:
        """The unitary matrix itself."""
        return (polar_factor(X),)

    def pullback(self, value: Tensor, gradient: Tensor, X: Tensor) -> tuple[Tensor]:
        """The projection onto the tangent space, where X is unitary."""
        return (polar_gradient(X, value, gradient),)

    def violation(self, value: Tensor) -> Tensor:
        """The largest entry of ``|W* W - I|``, or of ``|W W* - I|`` if W is wide."""
        W = value if value.shape[-2] >= value.shape[-1] else value.mH
        # The value is finite: a NaN is the difference of two overflows.
        excess = defect(W, W).abs().nan_to_num(nan=torch.inf, posinf=torch.inf)
        return excess.amax((-2, -1))

    def project(self, value: Tensor) -> Tensor:
        """The nearest member in the Frobenius norm, the polar factor."""
        return polar(value)

    def sample(
        self,
        shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Uniformly distributed (Haar measure): the polar factor of a Gaussian matrix.

        Of torch's default dtype, which is real, unless told otherwise.
        """
        self.check_shape(shape)
        dtype = dtype or torch.get_default_dtype()
        gaussian = torch.randn(
            tuple(shape), generator=generator, dtype=working_dtype(dtype), device=device
        )
        return polar(gaussian).to(dtype)

    def dimension(self, shape: Sequence[int]) -> int:
        """``2 n p - p^2``, where p is the smaller side, of complex matrices."""
        n, p = max(shape[-2:]), min(shape[-2:])
        return 2 * n * p - p * p

    def shape_problem(self, event: tuple[int, ...]) -> str | None:
        """An element is no empty matrix."""
        return empty(event)
