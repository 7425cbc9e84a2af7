"""Rotations: orthogonal matrices of determinant one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from constrained import register
from constrained.constraint.sampling import RandomNumbers
from constrained.torch_internals import linalg
from constraints.bases.expected_failures import NO_POLAR_FACTOR, no_derivative
from constraints.bases.retraction import Retraction
from constraints.bases.shapes import SquareMatrices
from constraints.math.orthonormal import orthonormality_error
from constraints.math.polar import polar, polar_factor, polar_gradient, thin_polar_gradient
from constraints.math.svd import svd
from constraints.math.uniform_orthogonal import uniform_orthogonal


@register("special_orthogonal", aliases=("rotation", "so", "special_orthogonal_group"))
class SpecialOrthogonal(SquareMatrices, Retraction):
    r"""Rotation matrices: orthogonal ones of determinant one.

    **Use**: rotations: poses of cameras and bodies, equivariant networks, rotations of embeddings
    and of weights before quantization.

    **Set**: $\{W \in \mathbb{R}^{n \times n} : W^\top W = I, \det W = 1\}$, the group
    $\mathrm{SO}(n)$: the component of $\mathrm{O}(n)$ that holds the identity. Dimension
    $n (n - 1) / 2$, closed.

    **Map**: $X \mapsto \operatorname{polar}(X)$, with its last column negated if its determinant is
    $-1$. Onto the set. The free parameter is the near-orthogonal matrix itself, as for `Orthogonal`
    with ``map="polar"``. The map does not depend on a positive factor of $X$. It costs one matrix
    product forward and two backward, since $X$ is made orthogonal after each step. It is not
    differentiable at a matrix without full rank.

    **Right inverse**: the matrix itself.

    **Reference**: Kabsch, A solution for the best rotation to relate two sets of vectors (Acta
    Crystallographica A32, 1976), for the projection; Higham, Functions of Matrices (2008),
    chapter 8, for the polar factor.

    `orthogonal` has both components of $\mathrm{O}(n)$. Training stays in the one where it starts,
    unless a step of the optimizer is about as long as the matrix.

    Example:
        >>> W = SpecialOrthogonal()(torch.tensor([[2.0, 0.0], [0.0, -3.0]]))
        >>> torch.equal(W, torch.eye(2))
        True
    """

    value_index = 0
    examples = (({}, (1, 1)), ({}, (2, 2)), ({}, (3, 3)), ({}, (5, 5)))
    expected_failures = no_derivative(NO_POLAR_FACTOR, "zero_params")

    def forward(self, X: Tensor) -> Tensor:
        """The polar factor, with its last column negated if its determinant is -1."""
        W = polar(X)
        return _reverse_last(W, _handedness(W))

    def canonical(self, X: Tensor) -> tuple[Tensor]:
        """The rotation itself."""
        W = polar_factor(X)
        return (_reverse_last(W, _handedness(W)),)

    def pullback(self, value: Tensor, gradient: Tensor, X: Tensor) -> tuple[Tensor]:
        """The projection onto the tangent space, where X is a rotation."""
        if X is value or torch.equal(X, value):
            return (polar_gradient(value, value, gradient),)
        W = polar_factor(X)
        return (polar_gradient(X, W, _reverse_last(gradient, _handedness(W))),)

    def tangent(self, value: Tensor, vector: Tensor) -> Tensor:
        """The orthogonal projection onto the tangent space."""
        return polar_gradient(value, value, vector)

    def thin_pullback(
        self, value: Tensor, left: Tensor, right: Tensor, X: Tensor
    ) -> tuple[Tensor | None, ...] | None:
        """The gradient of `pullback` in some products of ``(b, n)`` matrices."""
        gradient = thin_polar_gradient(value, left, right) if X is value else None
        return None if gradient is None else (gradient,)

    def violation(self, value: Tensor) -> Tensor:
        """The largest entry of ``|W'W - I|``, and at least 1 where the determinant is negative."""
        mirrored = (_handedness(value) < 0).to(value.dtype).amax((-2, -1))
        return torch.maximum(orthonormality_error(value), mirrored)

    def project(self, value: Tensor) -> Tensor:
        """The nearest rotation in the Frobenius norm.

        It is the polar factor. If that has determinant -1, the singular vector of the smallest
        singular value is negated.
        """
        W = polar(value)
        U, _, Vh = svd(value)
        reversed_ = polar(_reverse_last(U, _handedness(U) * _handedness(Vh)) @ Vh)
        return torch.where(_handedness(W) < 0, reversed_, W)

    def draw(self, shape: tuple[int, ...], random: RandomNumbers) -> Tensor:
        """Uniformly distributed (Haar measure): as for `Orthogonal`, then the map."""
        return self.forward(uniform_orthogonal(random.normal(shape)))

    def dimension(self, shape: Sequence[int]) -> int:
        """``n (n - 1) / 2``."""
        return shape[-1] * (shape[-1] - 1) // 2


def _handedness(W: Tensor) -> Tensor:
    """1 or -1, the sign of the determinant, of shape ``(*batch, 1, 1)``."""
    sign = linalg.slogdet(W.detach()).sign
    return torch.where(sign < 0, -1, 1).to(W.dtype)[..., None, None]


def _reverse_last(W: Tensor, sign: Tensor) -> Tensor:
    """W with its last column multiplied by the sign."""
    last = torch.arange(W.shape[-1], device=W.device) == W.shape[-1] - 1
    return W * torch.where(last, sign, 1)
