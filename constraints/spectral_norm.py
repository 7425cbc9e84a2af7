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
from constraints.lyapunov import spectrum

#: A norm that exceeds the bound by so many units of the machine epsilon counts as equal to it.
ROUNDING = 4.0


@register("spectral_norm", aliases=("lipschitz",))
class SpectralNorm(Constraint):
    r"""Matrices that stretch no vector by more than a bound.

    **Set**: :math:`\{W \in \mathbb{R}^{n \times p} : \lVert W \rVert_2 \le c\}`, the matrices with
    largest singular value c at most: closed, convex, of dimension np. For a linear layer this
    means a Lipschitz constant of at most c.

    **Map**: :math:`X \mapsto X \min(1, c / \lVert X \rVert_2)`, onto the set. The norm is computed
    exactly, from an eigendecomposition, at each evaluation: no state, and no estimate from below.
    A matrix in the set comes back bit for bit, and its derivative is the identity, on the boundary
    too. Where the largest singular value is not simple the norm is not differentiable: there the
    gradient is one of the subgradients.

    **Right inverse**: The matrix itself.

    **Reference**: Miyato, Kataoka, Koyama and Yoshida, Spectral normalization for generative
    adversarial networks (2018), where every matrix is scaled to the norm 1; Magnus, On
    differentiating eigenvalues and eigenvectors (1985).

    `canonical` puts a matrix outside of the set back onto its boundary. Out there the map ignores
    the length of the matrix, so that no gradient would ever lead back to the interior.

    Args:
        bound: the largest norm c, greater than zero.

    Shape:
        ``(*batch, n, p)``.

    Raises:
        TypeError: if the bound is not a number.
        ValueError: if the bound is not positive and finite.

    Example:
        >>> SpectralNorm(bound=2.0)(torch.tensor([[8.0, 0.0], [0.0, 4.0]]))
        tensor([[2., 0.],
                [0., 1.]])
    """

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
        "the map has a kink on the boundary: the identity inside, a retraction outside",
    )

    def __init__(self, bound: float = 1.0) -> None:
        super().__init__()
        if not isinstance(bound, Real) or isinstance(bound, bool):
            raise TypeError(f"spectral_norm: bound must be a number, got {bound!r}.")
        if not 0 < bound < math.inf:
            raise ValueError(f"spectral_norm: bound must be positive and finite, got {bound!r}.")
        self.bound = float(bound)

    def forward(self, X: Tensor) -> Tensor:
        """``X min(1, bound / norm)``."""
        # Scaled by the largest entry, so that squares neither overflow nor underflow.
        largest = X.detach().abs().amax(dim=(-2, -1), keepdim=True)
        unit = torch.where(largest > 0, largest, 1)
        scaled = X / unit
        norm = _norm(torch.where(largest > 0, scaled, 1))
        limit = self.bound * (1 + ROUNDING * torch.finfo(X.dtype).eps)
        inside = norm.detach() * largest <= limit
        return torch.where(inside, X, scaled * (self.bound / norm))

    def right_inverse(self, value: Tensor) -> Tensor:
        """The identity."""
        return value

    def canonical(self, X: Tensor) -> tuple[Tensor]:
        """The element itself."""
        with torch.no_grad():
            return (self.forward(X),)

    def violation(self, value: Tensor) -> Tensor:
        """``max(0, norm - bound)``, the distance in the spectral norm."""
        return F.relu(torch.linalg.matrix_norm(value, 2) - self.bound)

    def project(self, value: Tensor) -> Tensor:
        """The nearest member in the Frobenius norm: singular values cut at the bound."""
        largest = value.abs().amax(dim=(-2, -1), keepdim=True)
        U, S, Vh = torch.linalg.svd(
            value / torch.where(largest > 0, largest, 1), full_matrices=False
        )
        S = S.unsqueeze(-2) * largest
        outside = S.amax(dim=-1, keepdim=True) > self.bound
        clipped = (U * S.clamp(max=self.bound)) @ Vh
        return self.forward(torch.where(outside, clipped, value))

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
        norm = torch.linalg.matrix_norm(gaussian, 2, keepdim=True)
        return (torch.rand(norm.shape, **options) * self.bound * gaussian / norm).to(dtype)

    def dimension(self, shape: Sequence[int]) -> int:
        """``n p``, that of the space of all matrices."""
        return shape[-2] * shape[-1]


# Derivation. Let v be the eigenvector of X0' X0 for its largest eigenvalue at the current X0, and
# v_j the others. They are constants; let X vary around X0. To first order in X - X0 the eigenvector
# of X' X is
#
#     w(X) = v + sum_j v_j (v_j' X' X v) / (lambda - lambda_j),
#
# and the Rayleigh quotient ||X w|| / ||w||, which is stationary at the eigenvector, gives the norm
# with an error of fourth order. So it is an expression in X alone that has the value and the first
# three derivatives of the norm, and no derivative of an eigenvector appears, which would be
# infinite at equal eigenvalues. A gap between eigenvalues that rounding has blurred is left out of
# the sum: that costs second derivatives, which tend to infinity as the gap closes, not first ones.


def _norm(X: Tensor) -> Tensor:
    """The largest singular value, of shape ``(*batch, 1, 1)``, of a matrix that is not zero."""
    if X.shape[-2] < X.shape[-1]:
        X = X.mT
    with torch.no_grad():
        eigenvalues, V = spectrum(X.mT @ X)
        v, largest = V[..., -1:], eigenvalues[..., -1:]
        gaps = largest - eigenvalues
        blurred = gaps <= torch.finfo(X.dtype).eps ** 0.5 * largest
        weights = torch.where(blurred, 0, 1 / torch.where(blurred, 1, gaps))
    w = v + V @ (weights.unsqueeze(-1) * (V.mT @ (X.mT @ (X @ v))))
    stretched = torch.linalg.vector_norm(X @ w, dim=-2, keepdim=True)
    norm = stretched / torch.linalg.vector_norm(w, dim=-2, keepdim=True)
    # Among eigenvalues that rounding has blurred the quotient is a mean, a few units too small.
    return norm * (largest.sqrt().unsqueeze(-1) / norm.detach()).clamp(min=1)
