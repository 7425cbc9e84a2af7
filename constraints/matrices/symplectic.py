"""Symplectic matrices: the linear maps that keep the symplectic form."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from constrained import register
from constrained.constraint.sampling import RandomNumbers
from constrained.constraint.tolerance import tolerance
from constrained.torch_internals import linalg
from constraints.bases.expected_failures import NO_POLAR_FACTOR, no_derivative
from constraints.bases.shapes import EvenMatrices
from constraints.math.complex_polar import polar_of_parts
from constraints.math.polar import polar
from constraints.math.svd import svd


@register("symplectic")
class Symplectic(EvenMatrices):
    r"""Symplectic matrices: the canonical linear maps of Hamiltonian mechanics.

    **Use**: canonical linear maps of phase space: symplectic networks and integrators, linear
    optics and Gaussian quantum states.

    **Set**: $\mathrm{Sp}(2n, \mathbb{R}) = \{W \in \mathbb{R}^{2n \times 2n} : W^\top J W = J\}$
    with $J = \begin{pmatrix} 0 & I \\ -I & 0 \end{pmatrix}$, a group: closed, unbounded, connected,
    of dimension $n (2 n + 1)$. Its members have determinant one. If $s$ is a singular value, so is
    $1 / s$.

    **Map**: $(X, Y) \mapsto O P$, the polar decomposition of a symplectic matrix. $O$ is the polar
    factor of the part of $X$ that commutes with $J$: a unitary matrix of $n$ rows, in real numbers.
    $P$ is the positive definite symplectic matrix $K + (I + K^2)^{1/2}$, where $K$ is the part of
    $Y$ that is symmetric and anticommutes with $J$. Onto the set. $P$ is
    $\exp(\operatorname{arsinh}(K))$ and grows like $K$. The exponential of a Hamiltonian matrix,
    the usual map, overflows and is not onto.

    **Right inverse**: $J^\top W J$ is $O P^{-1}$. Half the sum of $W$ and $J^\top W J$ is
    $O (I + K^2)^{1/2}$, and half their difference is $O K$. So $O$ is the polar factor of the part
    of $W$ that commutes with $J$, and $K$ is $O^\top$ times the other part.

    **Reference**: de Gosson, Symplectic Geometry and Quantum Mechanics (2006), section 2.2, for
    the polar decomposition.

    `canonical` sets $X = O$, for which the polar factor is cheapest.

    Shape:
        ``(*batch, 2n, 2n)``: positions first, then momenta.

    Example:
        >>> W = Symplectic().sample((4, 4))
        >>> J = torch.tensor([[0.0, 1.0], [-1.0, 0.0]]).kron(torch.eye(2))
        >>> torch.allclose(W.mT @ J @ W, J, atol=1e-5)
        True
    """

    recompute_in_backward = True
    examples = (({}, (2, 2)), ({}, (4, 4)), ({}, (6, 6)))
    expected_failures = {  # noqa: RUF012 - never changed
        **no_derivative(NO_POLAR_FACTOR, "zero_params"),
        "nearest": "no formula is known for the nearest symplectic matrix: project() composes one "
        "of the parts that make up a member",
    }

    def forward(self, X: Tensor, Y: Tensor) -> Tensor:
        """``O P``."""
        return _unitary(X) @ _positive(_anticommuting(Y))

    def right_inverse(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """The orthogonal factor, and K."""
        return _factors(value)

    def canonical(self, X: Tensor, Y: Tensor) -> tuple[Tensor, Tensor]:
        """Parameters of the same element: X = O and Y = K."""
        with torch.no_grad():
            return _unitary(X), _anticommuting(Y)

    def restored_together(self, count: int) -> Sequence[Sequence[int]]:
        """Each parameter by itself."""
        return [[i] for i in range(count)]

    def tangent(self, value: Tensor, vector: Tensor) -> Tensor:
        """``V - J W K`` with the skew K that solves ``W'W K + K W'W = V'J'W - W'J V``.

        The tangent space is ``{W J S : S symmetric}``, and ``{J W K : K skew}`` is its orthogonal
        complement. With ``W = U diag(s) Q'`` and ``B = U' J V Q``, the entries of K are
        ``(s_j B_ji - s_i B_ij) / (s_i^2 + s_j^2)`` in the basis Q.

        Reference:
            Gao, Son, Absil and Stykel, Geometry of the symplectic Stiefel manifold endowed with the
            Euclidean metric (Geometric Science of Information, 2021), proposition 2.
        """
        U, s, Qh = svd(value)
        share = s.unsqueeze(-1) / torch.hypot(s.unsqueeze(-1), s.unsqueeze(-2))
        B = share * (U.mT @ _times(vector) @ Qh.mT)
        # Products of numbers up to 1, so that small singular values lose no digits.
        return vector + _times(U @ (share * (B - B.mT)) @ Qh)

    def retract(self, value: Tensor) -> Tensor:
        """A member that agrees with the nearest one to second order in the distance.

        The step from `project` towards ``value`` is made tangent, and taken.
        """
        member = self.project(value)
        return self.project(member + self.tangent(member, value - member))

    def violation(self, value: Tensor) -> Tensor:
        """The largest entry of ``|W'JW - J|``, over the norm of W: a distance, to first order."""
        size = linalg.matrix_norm(value).clamp(min=1)[..., None, None]
        unit = value / size
        J = _form(value)
        excess = (unit.mT @ _times(value) - J / size).abs().nan_to_num(nan=torch.inf)
        return excess.amax((-2, -1))

    def project(self, value: Tensor) -> Tensor:
        """A retraction: `forward`, applied to the factors that `right_inverse` would give.

        A member is returned as it is.
        """
        inside = (self.violation(value) <= tolerance(value, 2))[..., None, None]
        unitary, K = _factors(value)
        return torch.where(inside, value, unitary @ _positive(K))

    def draw(self, shape: tuple[int, ...], random: RandomNumbers) -> Tensor:
        """``forward`` of standard normal parameters, those of P divided by sqrt(2n)."""
        X, Y = random.normal((2, *shape)).unbind()
        return self.forward(X, Y / shape[-1] ** 0.5)

    def dimension(self, shape: Sequence[int]) -> int:
        """``n (2 n + 1)``, for matrices of 2n rows."""
        n = shape[-1] // 2
        return n * (2 * n + 1)


def _factors(W: Tensor) -> tuple[Tensor, Tensor]:
    unitary = _unitary(W)
    return unitary, _anticommuting(unitary.mT @ (W - _conjugate(W)) / 2)


def _positive(K: Tensor) -> Tensor:
    """``K + (I + K^2)^(1/2)``, where the root is H in the polar decomposition [K; I] = Q H."""
    identity = torch.eye(K.shape[-1], dtype=K.dtype, device=K.device).expand_as(K)
    stacked = torch.cat((K, identity), dim=-2)
    root = polar(stacked).mT @ stacked
    return K + (root + root.mT) / 2


def _form(like: Tensor) -> Tensor:
    """J, of the size of a matrix."""
    return _times(torch.eye(like.shape[-1], dtype=like.dtype, device=like.device))


def _times(W: Tensor) -> Tensor:
    """``J W``."""
    upper, lower = W.chunk(2, dim=-2)
    return torch.cat((lower, -upper), dim=-2)


def _conjugate(W: Tensor) -> Tensor:
    """``J' W J``, which is ``-J W J``."""
    return _times(_times(W.mT).mT)


def _unitary(X: Tensor) -> Tensor:
    """The polar factor of the part of X that commutes with J.

    That part is [[A, B], [-B, A]], the complex matrix A + iB in real numbers. Its polar factor has
    the same form. Computed in complex numbers, it commutes with J exactly.
    """
    (A, B), (C, D) = (rows.chunk(2, dim=-1) for rows in X.chunk(2, dim=-2))
    real, imaginary = polar_of_parts((A + D) / 2, (B - C) / 2)
    top = torch.cat((real, imaginary), dim=-1)
    return torch.cat((top, torch.cat((-imaginary, real), dim=-1)), dim=-2)


def _anticommuting(Y: Tensor) -> Tensor:
    """The part of Y that is symmetric and anticommutes with J."""
    S = (Y + Y.mT) / 2
    return (S - _conjugate(S)) / 2
