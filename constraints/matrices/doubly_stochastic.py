"""Doubly stochastic matrices: nonnegative, with rows and columns that add up to one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from constrained import Constraint, register
from constrained.constraint.base import FLAT
from constrained.constraint.tolerance import working_dtype
from constraints.math.birkhoff import nearest_doubly_stochastic
from constraints.math.logits import logits
from constraints.math.sinkhorn import sinkhorn

_EXEMPT = dict.fromkeys(
    (f"no_dead_directions:{point}" for point in ("eye", "repeated", "boundary")),
    "the boundary is the limit of the map at infinity: its derivative there is as small as the "
    "smallest entries",
)


@register("doubly_stochastic", aliases=("birkhoff", "birkhoff_polytope", "bistochastic"))
class DoublyStochastic(Constraint):
    r"""Doubly stochastic matrices, the convex hull of the permutation matrices.

    **Set**: :math:`\{W \in \mathbb{R}^{n \times n} : W_{ij} \ge 0, W 1 = 1, W^\top 1 = 1\}`, the
    Birkhoff polytope. Dimension (n - 1)^2, closed.

    **Map**: :math:`X \mapsto \mathrm{diag}(u) \exp(X) \mathrm{diag}(v)`, with the u, v > 0 that
    make the sums 1, onto the interior. The iteration is run until they are, up to rounding: 20
    rounds of it leave errors of 0.07 for logits of spread 10. Derivatives are those of the limit,
    by implicit differentiation.

    **Right inverse**: log(W), a zero being taken for eps / n, which changes W by less than its
    rounding. From a permutation matrix, gradients are as small as that: in single precision Adam
    gets away from there, in double precision its own epsilon (1e-8) must be lowered.

    **Reference**: Sinkhorn and Knopp, Concerning nonnegative matrices and doubly stochastic
    matrices (Pacific Journal of Mathematics 21, 1967); Li, Sun and Toh, On the efficient
    computation of a projector over the Birkhoff polytope (Mathematical Programming 179, 2020).

    Shape:
        ``(*batch, n, n)``.

    Example:
        >>> DoublyStochastic()(torch.tensor([[9.0, 9.0], [3.0, 3.0]]))
        tensor([[0.5000, 0.5000],
                [0.5000, 0.5000]])
    """

    event_dim = 2
    examples = (({}, (1, 1)), ({}, (2, 2)), ({}, (5, 5)))
    expected_failures: ClassVar[dict[str, str]] = _EXEMPT

    def forward(self, X: Tensor) -> Tensor:
        """The scaling of ``exp(X)``."""
        return sinkhorn(X)

    def right_inverse(self, value: Tensor) -> Tensor:
        """``log(W)``."""
        return logits(value)

    def violation(self, value: Tensor) -> Tensor:
        """The larger of two distances: of a negative entry from 0, and of a sum from 1.

        The second one is the change of the largest entry of the row or column when it is divided by
        its sum.
        """
        return _violation(value)

    def project(self, value: Tensor) -> Tensor:
        """The nearest point in the Frobenius norm."""
        return nearest_doubly_stochastic(value)

    def inwards(self, value: Tensor, share: float) -> Tensor:
        """Matrices with smaller entries than ``share / n`` are mixed with the matrix of 1 / n."""
        return _inner(value, share)

    def sample(
        self,
        shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """The scaling of matrices of independent exponentially distributed entries."""
        self.check_shape(shape)
        dtype = dtype or torch.get_default_dtype()
        return sinkhorn(-_gumbel(shape, generator, dtype, device)).to(dtype)

    def dimension(self, shape: Sequence[int]) -> int:
        """``(n - 1)^2``."""
        return (shape[-1] - 1) ** 2

    def shape_problem(self, event: tuple[int, ...]) -> str | None:
        """An element is a square matrix."""
        return _shape_problem(event)


@register("soft_permutation", aliases=("gumbel_sinkhorn",))
class SoftPermutation(Constraint):
    r"""Doubly stochastic matrices, in coordinates in which most are close to a permutation.

    **Set**: that of `DoublyStochastic`, the Birkhoff polytope, whatever the temperature. Dimension
    (n - 1)^2, closed. Permutation matrices are its vertices; a member need not be near one.

    **Map**: :math:`X \mapsto` the doubly stochastic scaling of :math:`\exp(X / \tau)`, onto the
    interior. For a small temperature :math:`\tau` parameters of size one, weights of a network say,
    give matrices near a permutation: the one that maximizes :math:`\sum_i X_{i \pi(i)}`, in the
    limit. Lowering the argument during training hardens the matrix.

    **Right inverse**: :math:`\tau \log(W)`, a zero being taken for eps / n.

    **Reference**: Mena, Belanger, Linderman and Snoek, Learning latent permutations with
    Gumbel-Sinkhorn networks (ICLR 2018); for the projection as for `DoublyStochastic`.

    Args:
        temperature: the divisor :math:`\tau` of the parameters, positive.

    Shape:
        ``(*batch, n, n)``.

    Raises:
        TypeError: if the temperature is not a number.
        ValueError: if the temperature is not positive and finite.

    Example:
        >>> SoftPermutation(temperature=0.1)(torch.tensor([[0.0, 1.0], [1.0, 1.0]])).round()
        tensor([[0., 1.],
                [1., 0.]])
    """

    event_dim = 2
    examples = (
        ({"temperature": 1.0}, (1, 1)),
        ({"temperature": 1.0}, (3, 3)),
        ({"temperature": 0.5}, (3, 3)),
        ({"temperature": 0.1}, (4, 4)),
    )
    expected_failures = _EXEMPT

    def __init__(self, temperature: float) -> None:
        super().__init__()
        if not isinstance(temperature, Real) or isinstance(temperature, bool):
            raise TypeError(f"soft_permutation: temperature must be a number, got {temperature!r}.")
        if not 0 < temperature < math.inf:
            raise ValueError(
                f"soft_permutation: temperature must be positive and finite, got {temperature!r}."
            )
        self.temperature = float(temperature)
        if self.temperature < 1:
            flat = (
                "at a low temperature the map is flat around each permutation, as it is meant to be"
            )
            laws = ("adam_reaches_the_optimum", "flat_members_are_told")
            self.expected_failures = {**self.expected_failures, **dict.fromkeys(laws, flat)}

    def forward(self, X: Tensor) -> Tensor:
        """The scaling of ``exp(X / temperature)``."""
        return sinkhorn(X / self.temperature)

    def right_inverse(self, value: Tensor) -> Tensor:
        """``temperature * log(W)``."""
        return self.temperature * logits(value)

    def violation(self, value: Tensor) -> Tensor:
        """As for `DoublyStochastic`."""
        return _violation(value)

    def project(self, value: Tensor) -> Tensor:
        """The nearest point in the Frobenius norm."""
        return nearest_doubly_stochastic(value)

    def inwards(self, value: Tensor, share: float) -> Tensor:
        """Matrices with smaller entries than ``share / n`` are mixed with the matrix of 1 / n."""
        return _inner(value, share)

    def flat(self, value: Tensor, share: float = FLAT) -> Tensor:
        """As always, but that at a low temperature nearly a permutation is what is typical."""
        return super().flat(value, share ** max(1.0, 1 / self.temperature))

    def sample(
        self,
        shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """The Gumbel-Sinkhorn distribution: ``forward`` of independent standard Gumbel numbers."""
        self.check_shape(shape)
        dtype = dtype or torch.get_default_dtype()
        return sinkhorn(_gumbel(shape, generator, dtype, device) / self.temperature).to(dtype)

    def dimension(self, shape: Sequence[int]) -> int:
        """``(n - 1)^2``."""
        return (shape[-1] - 1) ** 2

    def shape_problem(self, event: tuple[int, ...]) -> str | None:
        """An element is a square matrix."""
        return _shape_problem(event)


def _violation(W: Tensor) -> Tensor:
    negative = F.relu(-W).amax((-2, -1))
    errors = [negative]
    for dim in (-1, -2):
        largest = W.detach().abs().amax(dim).clamp(1 / W.shape[-1], 1)
        errors.append(((W.sum(dim) - 1).abs() * largest).amax(-1))
    return torch.stack(errors).amax(0)


def _inner(W: Tensor, share: float) -> Tensor:
    """Mixed with the matrix of 1 / n, if an entry is less than ``share`` of that."""
    mean = 1 / W.shape[-1]
    small = (W < share * mean).any(-1, keepdim=True).any(-2, keepdim=True)
    return torch.where(small, (W.clamp(min=0) + 2 * share * mean) / (1 + 2 * share), W)


def _gumbel(
    shape: Sequence[int],
    generator: torch.Generator | None,
    dtype: torch.dtype,
    device: torch.device | str | None,
) -> Tensor:
    exponential = torch.empty(tuple(shape), dtype=working_dtype(dtype), device=device)
    exponential.exponential_(generator=generator)
    return -exponential.clamp_(min=torch.finfo(exponential.dtype).tiny).log()


def _shape_problem(event: tuple[int, ...]) -> str | None:
    return None if event[0] == event[1] > 0 else "must be a square matrix with a row or more"
