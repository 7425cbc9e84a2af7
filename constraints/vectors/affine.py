"""Vectors that solve linear equations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from constrained import register
from constrained.constraint.linear_form import LinearForm, equations
from constrained.constraint.sampling import RandomNumbers
from constrained.torch_internals import linalg
from constraints.bases.argument_checks import as_tensor
from constraints.bases.linear_space import LinearSpace
from constraints.bases.retraction import Retraction
from constraints.bases.shapes import Vectors
from constraints.math.scaled_sum import centred_by


@register("sum_to_zero", aliases=("zero_sum", "centered", "sum_to_zero_vector"))
class SumToZero(Vectors, LinearSpace):
    r"""Vectors whose entries add up to zero.

    **Use**: effects relative to their mean, which makes them identifiable: the levels of a factor
    in a regression, seasonal terms, logits without their common shift.

    **Set**: $\{x \in \mathbb{R}^n : \sum_i x_i = 0\}$. Dimension $n - 1$, a linear space.

    **Map**: $y \mapsto y - \frac{1}{n} \sum_i y_i$, which takes off the mean, onto the set.

    **Right inverse**: the identity.

    **Reference**: Stan Reference Manual, section "Sum-to-zero vector".

    Example:
        >>> SumToZero()(torch.tensor([1.0, 2.0, 6.0]))
        tensor([-2., -1.,  3.])
    """

    examples = (({}, (1,)), ({}, (2,)), ({}, (7,)))

    def part(self, X: Tensor) -> Tensor:
        """``x - mean(x)``."""
        centred = X - X.mean(-1, keepdim=True)
        # Twice, because with large entries one subtraction leaves a mean by rounding.
        return centred - centred.mean(-1, keepdim=True)

    def project_scaled(self, value: Tensor, scale: Tensor) -> Tensor:
        """Entries give up shares of the sum in proportion to 1 / scale."""
        return self.part(centred_by(value, scale))

    def dimension(self, shape: Sequence[int]) -> int:
        """``n - 1``."""
        return shape[-1] - 1


@register("affine", aliases=("linear_equality",))
class Affine(Retraction):
    r"""Vectors that solve linear equations.

    **Use**: weights with known linear relations: portfolio weights with given exposures, moments to
    be matched, conservation laws, boundary values of a discretized function.

    **Set**: $\{x \in \mathbb{R}^n : A x = b\}$. Dimension $n - \operatorname{rank} A$, an affine
    space.

    **Map**: $y \mapsto y - Q Q^\top (y - p)$, the nearest solution, onto the set. The columns of
    $Q$ are an orthonormal basis of the row space of $A$, and $p$ is the shortest solution.

    **Right inverse**: the identity.

    **Reference**: Golub and Van Loan, Matrix Computations (4th edition, 2013), section 5.5.

    Args:
        A: the matrix $A$ of the equations, one in each row; shape ``(k, n)``, a tensor or nested
            lists. Rows may depend on one another.
        b: their right-hand sides $b$; shape ``(k,)``.

    Raises:
        ValueError: if the shapes do not fit, an entry is not finite, or the equations have no
            solution.

    Example:
        >>> x = Affine(A=[[1.0, 1.0]], b=[2.0])(torch.tensor([3.0, 1.0]))
        >>> torch.allclose(x, torch.tensor([2.0, 0.0]), atol=1e-6)
        True
    """

    event_dim = 1
    examples = (
        ({"A": [[1.0, 1.0, 1.0]], "b": [1.0]}, (3,)),
        ({"A": [[1.0, 2.0, 0.0, 0.5], [0.0, 1.0, -3.0, 2.0]], "b": [1.0, -2.0]}, (4,)),
        ({"A": [[1.0, 1.0], [2.0, 2.0]], "b": [0.0, 0.0]}, (2,)),
        ({"A": [[2.0]], "b": [3.0]}, (1,)),
    )

    def __init__(self, A: Tensor | Sequence[Sequence[float]], b: Tensor | Sequence[float]) -> None:
        super().__init__()
        self.A, self.b = _numbers("A", A), _numbers("b", b)
        if self.A.ndim != 2 or self.b.shape != self.A.shape[:1] or self.A.numel() == 0:
            raise ValueError(
                "affine: A must have the shape (k, n) and b the shape (k,), got "
                f"{tuple(self.A.shape)} and {tuple(self.b.shape)}."
            )
        U, s, Vh = linalg.svd(self.A, full_matrices=False)
        rank = int((s > s[0] * max(self.A.shape) * torch.finfo(s.dtype).eps).sum())
        self._basis = Vh[:rank].mT.contiguous()
        self._shortest = self._basis @ (U[:, :rank].mT @ self.b / s[:rank])
        missed = linalg.vector_norm(self.A @ self._shortest - self.b)
        if missed > 1e-9 * (linalg.vector_norm(self.b) + torch.finfo(s.dtype).tiny):
            raise ValueError("affine: the equations A x = b have no solution.")

    def forward(self, y: Tensor) -> Tensor:
        """The nearest solution."""
        near = y - self._miss(y)
        # Twice, because after one step the rounding errors of a large y may be large beside a small
        # solution.
        near = near - self._miss(near)
        # If it differs from the shortest solution by rounding of y only, that one is the result.
        shortest = self._shortest.to(y.device, y.dtype)
        left, whole = near.detach() - shortest, y.detach() - shortest
        # In units of the largest entry, so that no square leaves the range.
        unit = whole.abs().amax(-1, keepdim=True)
        unit = torch.where(unit > 0, unit, 1)
        left, whole = (linalg.vector_norm(x / unit, dim=-1, keepdim=True) for x in (left, whole))
        rounding = 4 * torch.finfo(y.dtype).eps * whole
        # With the derivative of `near`, through a term that is exactly zero.
        return torch.where(left <= rounding, shortest + (near - near.detach()), near)

    def tangent(self, value: Tensor, vector: Tensor) -> Tensor:
        """``v - Q Q' v``, the part in the null space of A."""
        del value
        basis = self._basis.to(vector.device, vector.dtype)
        return vector - vector @ basis @ basis.mT

    def project_scaled(self, value: Tensor, scale: Tensor) -> Tensor:
        """``x - D Q (Q' D Q)^-1 Q' (x - p)`` with ``D = diag(1 / scale)``.

        Ratios of scales beyond 1e12 count as 1e12.
        """
        scale, value = scale.double(), value.double()
        share = (scale.amin(-1, keepdim=True) / scale).clamp(min=1e-12)
        basis, shortest = (t.to(value.device) for t in (self._basis, self._shortest))
        Q, R = linalg.qr(share.sqrt().unsqueeze(-1) * basis)
        missed = ((value - shortest) @ basis).unsqueeze(-1)
        moved = Q @ linalg.solve_triangular(R.mT, missed, upper=False)
        return self.project(value - share.sqrt() * moved.squeeze(-1))

    def violation(self, value: Tensor) -> Tensor:
        """The largest entry of the difference from the nearest solution."""
        return self._miss(value).abs().amax(-1)

    def linear_form(self, shape: Sequence[int]) -> LinearForm:
        """The equations, with an orthonormal basis of the row space in the place of the rows."""
        del shape
        return equations(self._basis.mT, self._shortest @ self._basis)

    def draw(self, shape: tuple[int, ...], random: RandomNumbers) -> Tensor:
        """The nearest solution to a standard normal vector."""
        return self.forward(random.normal(shape))

    def dimension(self, shape: Sequence[int]) -> int:
        """``n - rank(A)``."""
        return shape[-1] - self._basis.shape[-1]

    def shape_problem(self, event: tuple[int, ...]) -> str | None:
        """An element has one entry for each column of A."""
        n = self.A.shape[-1]
        return None if event[0] == n else f"must have {n} entries, one for each column of A"

    def _miss(self, y: Tensor) -> Tensor:
        # Q Q' (y - p). The difference is taken first: it is small where y is almost a solution.
        basis = self._basis.to(y.device, y.dtype)
        shortest = self._shortest.to(y.device, y.dtype)
        return (y - shortest) @ basis @ basis.mT


def _numbers(name: str, given: Tensor | Sequence[Any]) -> Tensor:
    try:
        numbers = as_tensor(given).to(torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"affine: {name} must be a tensor, or nested lists of numbers.") from None
    if not bool(torch.isfinite(numbers).all()):
        raise ValueError(f"affine: {name} must be finite.")
    return numbers
