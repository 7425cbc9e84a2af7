"""Matrices of stable linear systems in discrete time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from constrained import register
from constrained.constraint.sampling import RandomNumbers
from constrained.constraint.tolerance import tolerance
from constrained.torch_internals import linalg
from constraints.bases.argument_checks import PositiveNumber, checked_positive
from constraints.bases.expected_failures import failing
from constraints.bases.shapes import SquareMatrices
from constraints.math.eigenvalues import eigenvalues, spectral_distance
from constraints.math.matrix import eye_like
from constraints.math.stable_lyapunov import (
    change_back,
    cheapest,
    coordinates,
    discrete_gramian,
    fading,
    modal,
    square_root,
)
from constraints.math.svd import svdvals


@register("schur", aliases=("schur_stable", "discrete_stable", "spectral_radius"))
class Schur(SquareMatrices):
    r"""Matrices of bounded spectral radius: stable dynamics in discrete time.

    **Use**: dynamics in discrete time, $x_{t+1} = A x_t$: linear recurrent networks, state-space
    models, echo states, Koopman operators, whose states must not explode.

    **Set**: $\{A \in \mathbb{R}^{n \times n} : \lvert \lambda \rvert \le r \text{ for every
    eigenvalue } \lambda \text{ of } A\}$: powers of $A$ grow no faster than those of $r$. Dimension
    $n^2$, closed, not convex.

    **Map**: $(V, F, D) \mapsto 2 r T (F F^\top + D D^\top + V V^\top)^{-1} V F^\top T^{-1} + h R$,
    onto the interior. With $M$ half of the matrix that is inverted, the product is
    $M^{-1} V F^\top$, for which $x^\top M (V V^\top)^{-1} M x$ does not increase. A common factor
    of $V$, $F$ and $D$ changes nothing, so that weight decay is harmless. $T$ and $R$ are
    constants: coordinates in which the matrix at the start is a contraction, and a remainder of the
    size of rounding. The factor $h = \max(0, 1 - 16 \lVert V - I \rVert_F^2 / n)^4$ lets $R$ fade.
    The map is not differentiable at $V = F = D = 0$.

    **Right inverse**: $V = I$, $F = C^\top$, $D = (I - C^\top C)^{1/2}$ with $C = T^{-1} A T / r$,
    where $T T^\top = P$ solves the Lyapunov equation $P - A P A^\top / r^2 = I$, or, next to the
    boundary, $T T^\top = V V^*$ for the eigenvectors $V$ of $A$; $T = I$ if the spectral norm of
    $A$ is at most $r$, as for an orthogonal matrix. The remainder makes it exact for every member,
    even on the boundary and with Jordan blocks. This has a price if $T$ is ill-conditioned:
    rounding errors, and with them $R$, reach $\varepsilon \operatorname{cond}(T)$, and until $R$
    has faded a value may violate the constraint by as much. In single precision that is less than
    $10^{-4} \lVert A \rVert_F$ up to $\operatorname{cond}(T) = 1000$, which covers projected
    Gaussian matrices. A matrix with a Jordan block of size $k$ on the boundary is moved inside by
    $\varepsilon^{1/k} \lVert A \rVert_F$, which $R$ compensates; there the set is so thin that
    gradient steps are useless.

    **Reference**: Revay, Wang and Manchester, Recurrent equilibrium networks: flexible dynamic
    models with guaranteed stability and robustness (arXiv 2104.05942), for contraction by a matrix
    inequality that is convex in the factors.

    Args:
        radius: the largest spectral radius $r$, positive.

    Shape:
        ``(*batch, n, n)``.

    Raises:
        TypeError: if the radius is not a number.
        ValueError: if the radius is not positive and finite.

    Example:
        >>> A = torch.tensor([[0.5, 8.0], [0.0, 0.5]])
        >>> schur = Schur()
        >>> torch.equal(schur(*schur.right_inverse(A)), A)
        True
        >>> schur.violation(torch.tensor([[0.5, 0.0], [0.0, -3.0]]))
        tensor(2.)
    """

    recompute_in_backward = True
    frozen = (3, 4)
    examples = (({}, (1, 1)), ({}, (2, 2)), ({}, (5, 5)), ({"radius": 0.5}, (3, 3)))
    why_not_project = "no formula is known for the nearest stable matrix"
    expected_failures = {  # noqa: RUF012 - never changed
        "nearest": "no formula is known for the nearest stable matrix, a problem that is not "
        "convex: project() divides by the spectral radius",
        "second_derivative:zero_params": "a common factor of the parameters changes nothing, so "
        "that the map has no limit at 0",
        **failing(
            "these are on the boundary, where the derivative of a smooth map into the set has no "
            "direction that points outwards",
            "no_dead_directions",
            at=("ones", "eye", "repeated", "boundary"),
        ),
    }

    def __init__(self, radius: PositiveNumber = 1.0) -> None:
        super().__init__()
        self.radius = checked_positive("schur", radius, "radius")

    def forward(self, V: Tensor, F: Tensor, D: Tensor, T: Tensor, R: Tensor) -> Tensor:
        """``r T 2 (F F' + D D' + V V')^-1 V F' T^-1 + h R``."""
        finfo = torch.finfo(V.dtype)
        fade = fading(V)
        factors = torch.cat([F, D, V], dim=-1)
        # A common factor changes nothing: in units of the largest entry no square overflows.
        unit = factors.detach().abs().amax((-2, -1), keepdim=True)
        unit = torch.where(unit > 1, unit, 1)
        factors, V, F = factors / unit, V / unit, F / unit
        G = factors @ factors.mT
        # Enlarging G keeps A stable, and gives G a Cholesky factor for all parameters.
        rounding = 2 * V.shape[-1] * finfo.eps
        term = (
            rounding * G.diagonal(dim1=-2, dim2=-1).amax(-1, keepdim=True) + finfo.tiny / finfo.eps
        )
        factor, _ = linalg.cholesky_ex(G + torch.diag_embed(term.expand(G.shape[:-1])))
        C = 2 * torch.cholesky_solve(V @ F.mT, factor)
        return self.radius * change_back(C, T) + fade * R

    def right_inverse(self, value: Tensor) -> tuple[Tensor, ...]:
        """``(I, C', (I - C'C)^(1/2), T, R)``, where T and R are constants."""
        if value.is_meta:
            return tuple(value.new_empty(value.shape) for _ in range(5))
        A = value.double() / self.radius
        radius = eigenvalues(A).abs().amax(-1)[..., None, None]

        def factors(margin: float) -> tuple[Tensor, ...]:
            return self._factors(value, *_contraction(A, radius, margin, value.dtype))

        return cheapest(factors, value)

    def _factors(self, value: Tensor, T: Tensor, C: Tensor) -> tuple[Tensor, ...]:
        # On the boundary, where D vanishes, this leaves a gradient.
        least = torch.full_like(C[..., 0], 4 * torch.finfo(value.dtype).eps)
        D = square_root(eye_like(C) - C.mT @ C, least).to(value.dtype)
        F = C.mT.to(value.dtype).contiguous()
        V = eye_like(value).expand_as(value)
        # This class's map, even if a derived class overrides it.
        R = value - Schur.forward(self, V, F, D, T, torch.zeros_like(value))
        return F, D, T, R

    def violation(self, value: Tensor) -> Tensor:
        """The excess of the spectral radius, divided by the condition of the eigenvalue.

        More precisely it is the largest such number, which estimates the distance of the matrix
        from the set; see `constraints.math.eigenvalues.spectral_distance`.
        """

        def way(x: Tensor) -> Tensor:
            modulus = x.abs()
            outside = modulus > self.radius
            return torch.where(outside, x * (1 - self.radius / torch.where(outside, modulus, 1)), 0)

        return spectral_distance(value, way)

    def slack(self, value: Tensor) -> Tensor:
        """The bound less the spectral radius."""
        return (self.radius - eigenvalues(value).abs().amax(-1)).to(value.dtype)

    def project(self, value: Tensor) -> Tensor:
        """A retraction: an outsider is scaled to the spectral radius r.

        It is not a nearest point; finding one is not a convex problem.
        """
        radius = eigenvalues(value).abs().amax(-1)[..., None, None]
        outside = radius > self.radius
        factor = torch.where(outside, self.radius / torch.where(outside, radius, 1), 1)
        inside = self.violation(value) <= tolerance(value, 2)
        return torch.where(inside[..., None, None], value, value * factor.to(value.dtype))

    def inwards(self, value: Tensor, share: float) -> Tensor:
        """A matrix whose spectral radius is nearly r is scaled down, by ``share``.

        The derivative grows with the root of the distance of the eigenvalues from the circle.
        """
        radius = eigenvalues(value).abs().amax(-1)[..., None, None] / self.radius
        factor = torch.where(radius > 1 - share, (1 - 2 * share) / radius.clamp(min=0.5), 1)
        return value * factor.to(value.dtype)

    def draw(self, shape: tuple[int, ...], random: RandomNumbers) -> Tensor:
        """Gaussian matrices, scaled to a spectral radius that is uniform between 0 and 0.95 r."""
        gaussian = random.normal(shape)
        radius = eigenvalues(gaussian).abs().amax(-1).to(gaussian.dtype)
        wanted = 0.95 * self.radius * random.uniform(radius.shape)
        return gaussian * (wanted / radius)[..., None, None]


def _contraction(
    A: Tensor, radius: Tensor, margin: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """T of the given dtype, and ``T^-1 A T`` with a norm of at most 1."""
    identity = eye_like(A).expand_as(A)
    norm = svdvals(A)[..., :1, None]
    normal = norm <= 1 + 4 * torch.finfo(dtype).eps
    if bool(normal.all()) or margin == math.inf:
        return identity.to(dtype, memory_format=torch.contiguous_format), A
    if margin == 0:
        L = modal(A)
    else:
        shrink = (1 - margin) / radius.clamp(min=torch.finfo(A.dtype).tiny)
        A = torch.where(normal, A, A * shrink.clamp(max=1))
        # Elements that need no other coordinates are replaced, so that the equation is solvable.
        L = discrete_gramian(torch.where(normal, 0, A))
    return coordinates(torch.where(normal, identity, L), A, dtype)
