"""Minimization problems over constraint sets, whose optimum is known from elsewhere.

The optimum comes from a decomposition of LAPACK, from how the data were made, or from a dual
problem whose value bounds it from below. All data are float64 and made from fixed seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy
import torch
from scipy import optimize
from torch import Tensor

#: How far from its set a point may lie and still count, relative to the size of its entries.
FEASIBILITY = 1e-10


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is to be solved.

    Attributes:
        name: in words.
        size: of the variable, in words.
        violation: how far a tensor lies from the set, by a formula that is not the library's.
        feasibility: the largest ``violation`` that counts as none.
        targets: the gaps to time.
    """

    name: str
    size: str
    violation: Callable[[Tensor], float]
    feasibility: float = FEASIBILITY
    targets: tuple[float, float] = (1e-3, 1e-8)


@dataclass(frozen=True, kw_only=True)
class Yardstick(Task):
    """Minimize ``objective`` over the set of ``spec``.

    Attributes:
        spec: the constraint.
        start: a member of the set, where every method starts.
        objective: from a float64 tensor of the shape of ``start`` to a number.
        optimum: its smallest value in the set.
        data: what the objective was made from, for solvers that don't take a function.
    """

    spec: str
    start: Tensor
    objective: Callable[[Tensor], Tensor]
    optimum: float
    data: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def set_name(self) -> str:
        """The constraint without its arguments."""
        return self.spec.partition("(")[0]

    @cached_property
    def start_excess(self) -> float:
        """How far the objective at the start lies above the optimum."""
        return float(self.objective(self.start)) - self.optimum

    def gap(self, X: Tensor) -> Tensor:
        """The objective above its optimum, relative to the start: 1 there, 0 at the optimum."""
        return (self.objective(X) - self.optimum) / self.start_excess

    @cached_property
    def curvature(self) -> float:
        """The largest eigenvalue of the Hessian of ``gap`` at the start, by power iteration."""
        X = self.start.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(self.gap(X), X, create_graph=True)
        generator = torch.Generator().manual_seed(0)
        v = torch.randn(X.shape, generator=generator, dtype=X.dtype)
        for _ in range(20):
            v = v / v.norm()
            (v,) = torch.autograd.grad(gradient, X, v, retain_graph=True)
        return float(v.norm())


# ---------------------------------------------------------------------------- correlation


def higham_3() -> Yardstick:
    """At a distance of 0.527790 (Higham, Computing the nearest correlation matrix, 2002)."""
    C = torch.tensor([[1.0, 1, 0], [1, 1, 1], [0, 1, 1]], dtype=torch.float64)
    return _nearest_correlation("Higham", C)


def higham_4() -> Yardstick:
    """The second difference matrix, at a distance of 2.133729 (the same paper)."""
    ones = torch.ones(3, dtype=torch.float64)
    C = 2 * torch.eye(4, dtype=torch.float64) - ones.diag(1) - ones.diag(-1)
    return _nearest_correlation("Higham, tridiagonal", C)


def missing_correlation(n: int) -> Yardstick:
    """Of a table with n rows, half of which is missing: correlations where both were observed."""
    g = torch.Generator().manual_seed(n)
    factors = torch.randn(n, 5, generator=g, dtype=torch.float64)
    table = factors @ torch.randn(5, n, generator=g, dtype=torch.float64)
    table = table + torch.randn(n, n, generator=g, dtype=torch.float64)
    seen = (torch.rand(n, n, generator=g) < 0.5).double()
    x, both = table * seen, seen.T @ seen
    means = (x.T @ seen) / both  # of column i, over the rows in which column j was seen
    squares = (x.square().T @ seen) / both - means.square()
    C = (x.T @ x / both - means * means.T) / (squares * squares.T).sqrt()
    C.fill_diagonal_(1)
    return _nearest_correlation("missing data", (C + C.T) / 2)


def _nearest_correlation(which: str, C: Tensor) -> Yardstick:
    n = len(C)

    def violation(X: Tensor) -> float:
        off = max(float((X.diagonal() - 1).abs().max()), float((X - X.T).abs().max()))
        shifted = X + FEASIBILITY * torch.eye(n, dtype=X.dtype)
        _, is_indefinite = torch.linalg.cholesky_ex((shifted + shifted.T) / 2)
        return math.inf if is_indefinite else off

    return Yardstick(
        name=f"nearest correlation, {which}",
        size=f"{n} x {n}",
        spec="correlation",
        start=torch.eye(n, dtype=torch.float64),
        objective=lambda X: (X - C).square().sum(),
        optimum=-2 * correlation_dual(C, lambda y: None)[1],
        violation=violation,
        data={"nearest to": C},
    )


def correlation_dual(
    C: Tensor, seen: Callable[[Tensor], object], precision: float = 1e-13
) -> tuple[Tensor, float]:
    """Minimize ``|(C + diag y)_+|^2 / 2 - sum y - |C|^2 / 2`` by SciPy's L-BFGS-B.

    Minus its value bounds the half squared distance of every correlation matrix from below; they
    meet at the optimum (Malick, 2004; Qi and Sun, 2006).

    Args:
        C: symmetric, of shape ``(n, n)``.
        seen: called with a correlation matrix for each ``y`` that is tried.
        precision: the largest entry of the gradient at which to stop.

    Returns:
        The correlation matrix at the last ``y``, and the smallest value of the dual.
    """
    last = torch.eye(len(C), dtype=C.dtype)

    def dual(y: numpy.ndarray) -> tuple[float, numpy.ndarray]:
        nonlocal last
        shift = torch.from_numpy(y)
        values, vectors = torch.linalg.eigh(C + shift.diag())
        root = vectors * values.clamp(min=0).sqrt()
        P = root @ root.T
        # On the diagonal P has ones only at the optimum.
        root = root / P.diagonal().sqrt().unsqueeze(-1)
        last = root @ root.T
        last.fill_diagonal_(1)
        seen(last)
        value = float(values.clamp(min=0).square().sum() - C.square().sum()) / 2 - float(
            shift.sum()
        )
        return value, (P.diagonal() - 1).numpy()

    found: Any = optimize.minimize(
        dual,
        (1 - C.diagonal()).numpy(),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 2000, "ftol": 0, "gtol": precision, "maxcor": 20},
    )
    return last, float(found.fun)


# ----------------------------------------------------------------------------- orthogonal


def principal_components(n: int, p: int, condition: float = 1000.0) -> Yardstick:
    """The subspace of the largest variance, of variances between 1 and 1 / ``condition``."""
    g = torch.Generator().manual_seed(n)
    variances = condition ** -torch.linspace(0, 1, n, dtype=torch.float64)
    Q = _orthonormal(n, n, g)
    C = Q * variances @ Q.T
    C = (C + C.T) / 2
    return Yardstick(
        name="PCA, condition 1000",
        size=f"{n} x {p}",
        spec="orthogonal",
        start=_orthonormal(n, p, g),
        objective=lambda X: -(X * (C @ X)).sum(),
        optimum=-float(variances[:p].sum()),
        violation=_off_orthogonal,
        data={"covariance": C},
    )


def procrustes(n: int) -> Yardstick:
    """``|A X - B|^2`` over orthogonal ``X``, all square, with independent normal entries."""
    g = torch.Generator().manual_seed(n)
    A, B = (torch.randn(n, n, generator=g, dtype=torch.float64) / n**0.5 for _ in range(2))
    U, S, Vh = torch.linalg.svd(A.T @ B)
    start = _orthonormal(n, n, g)
    # Orthogonal matrices have two components; no path leads from one to the other.
    if torch.linalg.det(U @ Vh) * torch.linalg.det(start) < 0:
        start[:, 0] *= -1
    return Yardstick(
        name="Procrustes",
        size=f"{n} x {n}",
        spec="orthogonal",
        start=start,
        objective=lambda X: (A @ X - B).square().sum(),
        optimum=float(A.square().sum() + B.square().sum() - 2 * S.sum()),
        violation=_off_orthogonal,
        data={"nearest to": A.T @ B},
    )


def _off_orthogonal(X: Tensor) -> float:
    return float((X.T @ X - torch.eye(X.shape[1], dtype=X.dtype)).abs().max())


# ---------------------------------------------------------------------------- regressions


def nonnegative_least_squares(m: int, n: int) -> Yardstick:
    """Half of ``|A x - b|^2`` over ``x >= 0``; about half of the optimum's entries are zero."""
    g = torch.Generator().manual_seed(n)
    A = torch.randn(m, n, generator=g, dtype=torch.float64) / m**0.5
    b = A @ torch.randn(n, generator=g, dtype=torch.float64)
    b = b + 0.1 * torch.randn(m, generator=g, dtype=torch.float64)
    x = torch.from_numpy(optimize.nnls(A.numpy(), b.numpy(), maxiter=20 * n)[0])
    return Yardstick(
        name="NNLS",
        size=f"{n}, {m} rows",
        spec="nonnegative",
        start=torch.ones(n, dtype=torch.float64) / 2,
        objective=_half_square(A, b),
        optimum=float(_half_square(A, b)(x)),
        violation=lambda x: max(0.0, -float(x.min())),
        data={"A": A, "b": b, "solution": x},
    )


def lasso(m: int, n: int) -> Yardstick:
    """Half of ``|A x - b|^2`` over an l1 ball, with fewer rows than columns.

    The radius is the l1 norm of the solution of scikit-learn's penalized form, which is the same.
    """
    from sklearn.linear_model import Lasso

    g = torch.Generator().manual_seed(n)
    A = torch.randn(m, n, generator=g, dtype=torch.float64) / m**0.5
    sparse = torch.randn(n, generator=g, dtype=torch.float64)
    sparse = sparse * (torch.rand(n, generator=g) < 0.1)
    b = A @ sparse + 0.05 * torch.randn(m, generator=g, dtype=torch.float64)
    weight = 0.05 * float((A.T @ b).abs().max())
    solver = Lasso(alpha=weight / m, fit_intercept=False, tol=1e-14, max_iter=100_000)
    x = torch.from_numpy(solver.fit(A.numpy(), b.numpy()).coef_)
    radius = float(x.abs().sum())
    g_start = torch.randn(n, generator=g, dtype=torch.float64)
    return Yardstick(
        name="LASSO",
        size=f"{n}, {m} rows",
        spec=f"l1_ball(radius={radius!r})",
        start=g_start * (radius / 2 / g_start.abs().sum()),
        objective=_half_square(A, b),
        optimum=float(_half_square(A, b)(x)),
        violation=lambda x: max(0.0, float(x.abs().sum()) / radius - 1),
        data={
            "A": A,
            "b": b,
            "solution": x,
            "weight": torch.tensor(weight, dtype=torch.float64),
            "radius": torch.tensor(radius, dtype=torch.float64),
        },
    )


def _half_square(A: Tensor, b: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: (A @ x - b).square().sum() / 2


# ------------------------------------------------------------- covariance and completion


def covariance(n: int) -> Yardstick:
    """The likelihood of Gaussian samples, whose optimum is their covariance; condition 10^4."""
    g = torch.Generator().manual_seed(n)
    scales = torch.logspace(-1, 1, n, dtype=torch.float64)
    samples = torch.randn(10 * n, n, generator=g, dtype=torch.float64) * scales
    samples = samples @ _orthonormal(n, n, g)
    S = samples.T @ samples / len(samples)

    def likelihood(X: Tensor) -> Tensor:
        L, failed = torch.linalg.cholesky_ex(X)
        value = 2 * L.diagonal().log().sum() + torch.cholesky_solve(S, L).trace()
        # Line searches ask for points that no covariance has.
        return value + math.inf if failed else value

    def violation(X: Tensor) -> float:
        _, failed = torch.linalg.cholesky_ex(X)
        return math.inf if failed else float((X - X.T).abs().max() / X.abs().max())

    return Yardstick(
        name="covariance by maximum likelihood",
        size=f"{n} x {n}",
        spec="positive_definite",
        start=torch.eye(n, dtype=torch.float64),
        objective=likelihood,
        optimum=float(likelihood(S)),
        violation=violation,
    )


def completion(n: int, rank: int, observed: float = 0.3) -> Yardstick:
    """A matrix of low rank from some of its entries, without noise: the optimum is 0."""
    g = torch.Generator().manual_seed(n)

    def low_rank() -> Tensor:
        left, right = (torch.randn(n, rank, generator=g, dtype=torch.float64) for _ in range(2))
        return left @ right.T / rank**0.5

    M, start = low_rank(), low_rank()
    seen = (torch.rand(n, n, generator=g) < observed).double()

    def violation(X: Tensor) -> float:
        values = torch.linalg.svdvals(X)
        return float(values[rank] / values[0])

    return Yardstick(
        name="matrix completion",
        size=f"{n} x {n}, rank {rank}",
        spec=f"low_rank(rank={rank})",
        start=start,
        objective=lambda X: ((X - M) * seen).square().sum() / 2,
        optimum=0.0,
        violation=violation,
        data={"rank": torch.tensor(rank)},
    )


def _orthonormal(n: int, p: int, generator: torch.Generator) -> Tensor:
    normal = torch.randn(n, p, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(normal).Q.contiguous()


#: Solved in a second or less.
SMALL: tuple[Callable[[], Yardstick], ...] = (
    higham_3,
    higham_4,
    lambda: missing_correlation(60),
    lambda: principal_components(60, 45),
    lambda: procrustes(60),
    lambda: nonnegative_least_squares(100, 60),
    lambda: lasso(60, 120),
    lambda: covariance(16),
    lambda: completion(60, 3),
)
#: What two cores do in seconds.
LARGE: tuple[Callable[[], Yardstick], ...] = (
    lambda: missing_correlation(400),
    lambda: principal_components(200, 150),
    lambda: procrustes(200),
    lambda: nonnegative_least_squares(1000, 600),
    lambda: lasso(500, 1000),
    lambda: covariance(100),
    lambda: completion(300, 8),
)
