"""Which spectra a set allows, found by asking whether probes are members."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from constrained.constraint.base import Constraint
from constrained.torch_internals import linalg

#: Probes are matrices of at most this side, if the constraint admits one so small.
_SIDE = 6

#: The sizes that are tried: from ``2^-20`` to ``2^20``, beside those of the matrix itself.
_EXPONENTS = torch.arange(-20, 20.5, 0.5, dtype=torch.float64)

#: How often an interval is halved at whose end the set ends.
_HALVINGS = 40


@torch.no_grad()
def allowed_range(
    constraint: Constraint, known: Tensor, shape: tuple[int, int], *, symmetric: bool
) -> tuple[float, float] | None:
    """The interval that all singular values, or eigenvalues, of members lie in, if there is one.

    It is the interval of t for which t Q is a member, Q being orthogonal; for symmetric matrices
    Q is the identity, and t may be negative. There is none where a set says something else about
    its members than how large these numbers are, as that of stochastic matrices does.

    Args:
        constraint: whose elements are matrices.
        known: those numbers of some member.
        shape: that of a member.
        symmetric: whether they are eigenvalues of symmetric matrices.

    Returns:
        The two ends, which may be infinite; None if there is no such interval.
    """
    side = next(
        (
            n
            for n in (_SIDE, 64)
            if constraint.shape_problem(tuple(min(s, n) for s in shape)) is None
        ),
        None,
    )
    if side is None:
        return None
    rows, columns = (min(s, side) for s in shape)
    probe = _probe(rows, columns, symmetric)
    sizes = torch.cat([known.double().flatten().cpu(), torch.zeros(1), torch.exp2(_EXPONENTS)])
    sizes = (torch.cat([sizes, -sizes]) if symmetric else sizes).sort().values
    # Each once.
    sizes = sizes[torch.cat([torch.ones(1, dtype=torch.bool), sizes.diff() > 0])]

    def inside(t: Tensor) -> Tensor:
        return constraint.contains(probe(t.unsqueeze(-1).expand(-1, min(rows, columns))))

    member = inside(sizes)
    if not bool(member.any()):
        return None
    first, last = (int(i) for i in member.nonzero().flatten()[[0, -1]])
    if not bool(member[first : last + 1].all()):
        return None
    low, high = float(sizes[first]), float(sizes[last])
    if first > 0:
        low = _edge(low, float(sizes[first - 1]), inside)
    if last < len(sizes) - 1:
        high = _edge(high, float(sizes[last + 1]), inside)
    if _is_exceeded(constraint, probe, low, high, min(rows, columns)):
        return None
    rounding = 1e-5 * max(abs(low), 0.0 if last == len(sizes) - 1 else abs(high), 1e-3)
    if bool(((known < low - rounding) | (known > high + rounding)).any()):
        # The set says something about the numbers together.
        return None
    least = 2.0**-19
    if last == len(sizes) - 1:
        high = torch.inf
    if symmetric and first == 0:
        low = -torch.inf
    return (0.0 if abs(low) < least else low), high


def _probe(rows: int, columns: int, symmetric: bool) -> Callable[[Tensor], Tensor]:
    """Matrices with given singular values or, if symmetric, eigenvalues."""
    rank = min(rows, columns)
    if symmetric:
        U = V = torch.eye(rank, dtype=torch.float64)
        if rank > 1:
            # Numbers that differ are not all on the diagonal.
            U[:2, :2] = torch.tensor([[1.0, 1.0], [-1.0, 1.0]]) / 2**0.5
    else:
        generator = torch.Generator().manual_seed(0)
        U, V = (_rotation(side, generator)[:, :rank] for side in (rows, columns))
    return lambda s: (U * s.unsqueeze(-2)) @ V.mT


def _rotation(side: int, generator: torch.Generator) -> Tensor:
    Q = linalg.qr(torch.randn(side, side, generator=generator, dtype=torch.float64)).Q
    Q[:, 0] *= linalg.slogdet(Q).sign
    return Q


def _edge(inside: float, outside: float, is_inside: Callable[[Tensor], Tensor]) -> float:
    for _ in range(_HALVINGS):
        middle = (inside + outside) / 2
        if bool(is_inside(torch.tensor([middle], dtype=torch.float64))):
            inside = middle
        else:
            outside = middle
    return inside


def _is_exceeded(
    constraint: Constraint, probe: Callable[[Tensor], Tensor], low: float, high: float, rank: int
) -> bool:
    """Whether numbers that are not all equal may lie outside of the interval of equal ones.

    So it is for a set of one determinant, trace or Frobenius norm: what one number loses another
    one may gain. And it is for stable matrices, whose singular values may be of any size.
    """
    if rank < 2:
        return False
    tried: list[list[float]] = []
    if high < 2.0**20:
        # The first two numbers, and all others.
        pairs = (2.0, 0.5, 1.0), (1.5, 0.5, 1.0), (1.5**0.5, 0.5**0.5, 1.0), (1.5, 1e-3, 1e-3)
        tried += [[high * a, high * b] + [high * c] * (rank - 2) for a, b, c in pairs]
    if low > 0:
        tried.append([0.5 * low] + [min(2 * low, high)] * (rank - 1))
    return bool(tried) and bool(
        constraint.contains(probe(torch.tensor(tried, dtype=torch.float64))).any()
    )


@torch.no_grad()
def allowed_eigenvalues(constraint: Constraint, points: Tensor) -> Tensor | None:
    """Which complex numbers may be eigenvalues of members, which are real matrices.

    Args:
        constraint: whose elements are square matrices.
        points: complex, of shape ``(n,)``.

    Returns:
        Real tensor of the shape of ``points``, of the normal matrices of 2 rows with this
        eigenvalue and its conjugate: for members the slack, or 0 where the set has none, and minus
        the violation for others. None if no such matrix can have the constraint.
    """
    if constraint.shape_problem((2, 2)) is not None:
        return None
    a, b = points.real.double(), points.imag.double()
    matrices = torch.stack([torch.stack([a, -b], -1), torch.stack([b, a], -1)], -2)
    slack = constraint.slack(matrices)
    inside = torch.zeros_like(a) if slack is None else slack.clamp(min=0)
    return torch.where(constraint.contains(matrices), inside, -constraint.violation(matrices))
