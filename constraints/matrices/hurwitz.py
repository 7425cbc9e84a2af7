"""Matrices of stable linear systems in continuous time."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from constrained import register
from constrained.constraint.sampling import RandomNumbers
from constrained.constraint.tolerance import tolerance
from constrained.torch_internals import linalg
from constraints.bases.argument_checks import checked_bound
from constraints.bases.expected_failures import failing
from constraints.bases.shapes import SquareMatrices
from constraints.math.eigenvalues import eigenvalues, spectral_distance
from constraints.math.matrix import eye_like
from constraints.math.norm import norm
from constraints.math.stable_lyapunov import (
    change_back,
    cheapest,
    continuous_gramian,
    coordinates,
    fading,
    modal,
    square_root,
)


@register("hurwitz", aliases=("alpha_stable", "continuous_stable"))
class Hurwitz(SquareMatrices):
    r"""Matrices with all eigenvalues left of a vertical line: stable dynamics in continuous time.

    **Use**: dynamics in continuous time: neural ODEs, state-space models, controllers, whose states
    must decay.

    **Set**: $\{A \in \mathbb{R}^{n \times n} : \operatorname{Re} \lambda \le -\alpha \text{ for
    every eigenvalue } \lambda \text{ of } A\}$: solutions of $x' = A x$ decay like
    $\exp(-\alpha t)$. Dimension $n^2$, closed, not convex.

    **Map**: $(X, Y, Z) \mapsto T P (S - Q / 2) T^{-1} - \alpha I + h R$, where
    $P = 2 X X^\top / (1 + \operatorname{tr}(X X^\top) / n)$, $Q = Y Y^\top$ and
    $S = (Z - Z^\top) / 2$. It is onto the interior, since the matrices $P (S - Q / 2)$ are those
    for which $x^\top P^{-1} x$ does not increase. $T$ and $R$ are constants: coordinates in which
    the matrix at the start dissipates energy, and a remainder of the size of rounding. The factor
    $h = \max(0, 1 - 16 \lVert X - I \rVert_F^2 / n)^4$ lets $R$ fade.

    **Right inverse**: $X = I$, and $T$ with $T T^\top$ the solution $G$ of the Lyapunov equation
    $(A + \alpha I) G + G (A + \alpha I)^\top = -I$, or, next to the boundary, $T T^\top = V V^*$
    for the eigenvectors $V$ of $A$; $T = I$ if the symmetric part of $A + \alpha I$ is negative
    semidefinite already. The remainder makes it exact for every member, even on the boundary and
    with Jordan blocks. This has a price if $T$ is ill-conditioned: rounding errors, and with them
    $R$, reach $\varepsilon \operatorname{cond}(T)$, and until $R$ has faded a value may violate the
    constraint by as much. In single precision that is less than $10^{-4} \lVert A \rVert_F$ up to
    $\operatorname{cond}(T) = 1000$, which covers projected Gaussian matrices. A matrix with a
    Jordan block of size $k$ on the boundary is moved inside by
    $\varepsilon^{1/k} \lVert A \rVert_F$, which $R$ compensates; there the set is so thin that
    gradient steps are useless.

    **Reference**: Boyd, El Ghaoui, Feron and Balakrishnan, Linear Matrix Inequalities in System and
    Control Theory (1994), chapter 5, for quadratic Lyapunov functions; Gillis and Sharma, On
    computing the distance to stability for matrices using linear dissipative Hamiltonian systems
    (Automatica 85, 2017), for the factors.

    Args:
        alpha: the rate of decay $\alpha$.

    Shape:
        ``(*batch, n, n)``.

    Raises:
        TypeError: if alpha is not a number.
        ValueError: if alpha is not finite.

    Example:
        >>> A = torch.tensor([[-1.0, 8.0], [0.0, -1.0]])
        >>> hurwitz = Hurwitz(alpha=0.5)
        >>> torch.equal(hurwitz(*hurwitz.right_inverse(A)), A)
        True
        >>> hurwitz.violation(torch.tensor([[0.5, 0.0], [0.0, -1.0]]))
        tensor(1.)
    """

    recompute_in_backward = True
    frozen = (3, 4)
    examples = (({}, (1, 1)), ({}, (2, 2)), ({}, (5, 5)), ({"alpha": 0.5}, (3, 3)))
    why_not_project = "no formula is known for the nearest stable matrix"
    expected_failures = {  # noqa: RUF012 - never changed
        "nearest": "no formula is known for the nearest stable matrix, a problem that is not "
        "convex: project() shifts the eigenvalues",
        **failing(
            "these are on the boundary, where the derivative of a smooth map into the set has no "
            "direction that points outwards",
            "no_dead_directions",
            at=("zeros", "ones", "eye", "repeated", "boundary"),
        ),
    }

    def __init__(self, alpha: float = 0.0) -> None:
        super().__init__()
        self.alpha = checked_bound("hurwitz", alpha, "alpha")

    def forward(self, X: Tensor, Y: Tensor, Z: Tensor, T: Tensor, R: Tensor) -> Tensor:
        """``T P (S - Q / 2) T^-1 - alpha I + h R``."""
        return self._stable(X, Y, Z, T) - self.alpha * eye_like(X) + fading(X) * R

    def _stable(self, X: Tensor, Y: Tensor, Z: Tensor, T: Tensor) -> Tensor:
        K = (Z - Z.mT - Y @ Y.mT) / 2
        # In units of the largest entry, so that no square overflows where the product does not.
        unit = X.detach().abs().amax((-2, -1), keepdim=True).clamp(min=1)
        X = X / unit
        mean = X.square().sum((-2, -1), keepdim=True) / X.shape[-1]
        one = unit.square().reciprocal()
        A = change_back((2 / (one + mean)) * (X @ (X.mT @ K)), T)
        return A - _rounding(2 * mean / (one + mean), K) * eye_like(X)

    def right_inverse(self, value: Tensor) -> tuple[Tensor, ...]:
        """``(I, Y, Z, T, R)``, where T and R are constants."""
        if value.is_meta:
            return tuple(value.new_empty(value.shape) for _ in range(5))
        wide = value.double()
        A = wide + self.alpha * eye_like(wide)
        abscissa = eigenvalues(A).real.amax(-1)[..., None, None]

        def factors(margin: float) -> tuple[Tensor, ...]:
            return self._factors(value, *_dissipative(A, abscissa, margin, value.dtype))

        return cheapest(factors, value)

    def _factors(self, value: Tensor, T: Tensor, K: Tensor) -> tuple[Tensor, ...]:
        size = norm(K)[..., 0]
        # On the boundary, where Q vanishes, this leaves a gradient.
        least = 4 * torch.finfo(value.dtype).eps * torch.where(size > 0, size, 1)
        Y = square_root(-(K + K.mT), least).to(value.dtype)
        Z = ((K - K.mT) / 2).to(value.dtype)
        A = self._stable(eye_like(value).expand_as(value), Y, Z, T)
        return Y, Z, T, value - (A - self.alpha * eye_like(A))

    def violation(self, value: Tensor) -> Tensor:
        """The spectral abscissa plus alpha, divided by the condition of the eigenvalue.

        More precisely it is the largest such number, which estimates the distance of the matrix
        from the set; see `constraints.math.eigenvalues.spectral_distance`.
        """

        def way(x: Tensor) -> Tensor:
            excess = F.relu(x.real + self.alpha)
            return torch.complex(excess, torch.zeros_like(excess))

        return spectral_distance(value, way)

    def slack(self, value: Tensor) -> Tensor:
        """How far the eigenvalues are left of the line."""
        return (-self.alpha - eigenvalues(value).real.amax(-1)).to(value.dtype)

    def project(self, value: Tensor) -> Tensor:
        """A retraction: all eigenvalues of an outsider are shifted left, by a multiple of I.

        It is not a nearest point; finding one is not a convex problem.
        """
        abscissa = eigenvalues(value).real.amax(-1)[..., None, None]
        identity = eye_like(value)
        # Two subtractions: added to a large eigenvalue, alpha would be lost in rounding.
        shifted = value.double() - abscissa * identity - self.alpha * identity
        shifted = torch.where(abscissa + self.alpha > 0, shifted, value).to(value.dtype)
        inside = self.violation(value) <= tolerance(value, 2)
        return torch.where(inside[..., None, None], value, shifted)

    def inwards(self, value: Tensor, share: float) -> Tensor:
        """A matrix with eigenvalues next to the line is shifted left, by a multiple of I.

        Their distance from the line, with whose root the derivative grows, becomes ``share`` of the
        size of the matrix, or of 1.
        """
        size = _mean_size(value)
        excess = eigenvalues(value).real.amax(-1)[..., None, None] + self.alpha + share * size
        shift = torch.where(excess > 0, excess + share * size, 0)
        return value - (shift * eye_like(value)).to(value.dtype)

    def admit(self, value: Tensor, share: float) -> Tensor:
        """The retraction, with the eigenvalues as far from the line as those of samples are.

        Nearer to it, the coordinates T of the right inverse are ill-conditioned.
        """
        return self.inwards(self.project(value), max(share, 0.1))

    def draw(self, shape: tuple[int, ...], random: RandomNumbers) -> Tensor:
        """Gaussian matrices of entries of variance 1 / n, shifted by a multiple of I.

        The distance of the eigenvalues to the line is uniform between 0.1 and 1.
        """
        gaussian = random.normal(shape) / shape[-1] ** 0.5
        abscissa = eigenvalues(gaussian).real.amax(-1).to(gaussian.dtype)
        margin = 0.1 + 0.9 * random.uniform(abscissa.shape)
        shift = (abscissa + self.alpha + margin)[..., None, None]
        return gaussian - shift * eye_like(gaussian)


def _dissipative(
    A: Tensor, abscissa: Tensor, margin: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """T of the given dtype, and ``T^-1 A T`` with a symmetric part that is negative."""
    identity = eye_like(A).expand_as(A)
    largest = linalg.eigvalsh((A + A.mT) / 2)[..., -1, None, None]
    size = norm(A)
    normal = largest <= 4 * torch.finfo(dtype).eps * size
    if bool(normal.all()) or margin == math.inf:
        return identity.to(dtype, memory_format=torch.contiguous_format), A
    if margin == 0:
        L = modal(A)
    else:
        A = torch.where(normal, A, A - F.relu(abscissa + margin * size) * identity)
        # Elements that need no other coordinates are replaced, so that the equation is solvable.
        L = continuous_gramian(torch.where(normal, -identity, A))
    return coordinates(torch.where(normal, identity, L), A, dtype)


def _mean_size(A: Tensor) -> Tensor:
    """The root mean square of the singular values, or 1 if that is more."""
    return (norm(A) / A.shape[-1] ** 0.5).clamp(min=1)


def _rounding(P: Tensor, K: Tensor) -> Tensor:
    """The distance by which the eigenvalues of a product P K are shifted left.

    If P and K are large and their product is small, the error of the product is large relative to
    it. It would count as a violation, since the distance of a matrix from the set is compared with
    the size of the matrix.

    Args:
        P: the mean eigenvalue of P.
        K: the other factor.
    """
    size = P * norm(K.detach()) / K.shape[-1] ** 0.5
    return 4 * torch.finfo(K.dtype).eps * size.detach()
