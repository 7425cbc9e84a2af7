"""Problems on sets whose least loss is known."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from constrained import constrain, get


class Problem(NamedTuple):
    """A loss of the tensors of a model.

    Attributes:
        model: the model, whose tensors are constrained with ``mode="project"``.
        loss: the loss.
        least: its least value.
    """

    model: nn.Module
    loss: Callable[[nn.Module], Tensor]
    least: float

    def gap(self) -> float:
        """How far the loss is above its least value, in units of that, or of 1 if that is 0."""
        with torch.no_grad():
            return (float(self.loss(self.model)) - self.least) / (abs(self.least) or 1.0)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def gaussian(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def model_of(value: Tensor, spec: Any = None) -> nn.Module:
    """A module with one tensor W, constrained unless there is no spec."""
    model = nn.Module()
    model.W = nn.Parameter(value.clone())
    return model if spec is None else constrain(model, "W", spec, mode="project")


def start(spec: str, *shape: int, seed=1) -> Tensor:
    constraint = get(spec)() if isinstance(spec, str) else spec
    return constraint.sample(shape, generator=generator(seed), dtype=torch.float64)


def covariance(n: int, samples: int, seed=0) -> Tensor:
    X = gaussian(samples, n, seed=seed)
    return X.T @ X / samples


def eigenvector() -> Problem:
    A = covariance(12, 30)
    least = float(torch.linalg.eigvalsh(A)[0])
    x = start("sphere", 12)
    return Problem(model_of(x, "sphere"), lambda m: m.W @ A @ m.W, least)


def procrustes() -> Problem:
    B = gaussian(10, 4)
    least = -float(torch.linalg.svdvals(B).sum())
    W = start("orthogonal", 10, 4)
    return Problem(model_of(W, "orthogonal"), lambda m: -(m.W * B).sum(), least)


def principal_components() -> Problem:
    A = covariance(10, 30)
    least = -float(torch.linalg.eigvalsh(A)[-3:].sum())
    W = start("orthogonal", 10, 3)
    return Problem(model_of(W, "orthogonal"), lambda m: -(m.W * (A @ m.W)).sum(), least)


def brockett() -> Problem:
    A, weights = covariance(10, 30), torch.arange(1.0, 4, dtype=torch.float64)
    least = -float(torch.linalg.eigvalsh(A)[-3:] @ weights)
    W = start("orthogonal", 10, 3)
    return Problem(model_of(W, "orthogonal"), lambda m: -(m.W * (A @ m.W) @ weights).sum(), least)


def completion() -> Problem:
    truth = gaussian(14, 2) @ gaussian(2, 12, seed=1)
    seen = torch.rand(14, 12, generator=generator(2)) < 0.7
    W = get("fixed_rank")(rank=2).project(torch.where(seen, truth, 0.0))
    return Problem(
        model_of(W, "fixed_rank(rank=2)"),
        lambda m: (m.W - truth)[seen].square().sum(),
        0.0,
    )


def correlation() -> Problem:
    A = torch.tensor([[1.0, 1, 0], [1, 1, 1], [0, 1, 1]], dtype=torch.float64)
    # Higham, Computing the nearest correlation matrix (2002): the distance is 0.527790.
    least = float((get("correlation")().retract(A) - A).square().sum())
    assert abs(least**0.5 - 0.527790) < 1e-6
    L = start("correlation_cholesky", 3, 3)
    return Problem(
        model_of(L, "correlation_cholesky"), lambda m: (m.W @ m.W.T - A).square().sum(), least
    )


def likelihood() -> Problem:
    scales = torch.logspace(-0.5, 0.5, 6, dtype=torch.float64)
    S = covariance(6, 40) * scales.outer(scales)
    least = float(torch.logdet(S)) + 6
    return Problem(
        model_of(torch.eye(6, dtype=torch.float64), AFFINE),
        lambda m: torch.logdet(m.W) + torch.linalg.solve(m.W, S).trace(),
        least,
    )


def geometric_mean() -> Problem:
    """The Karcher mean of two matrices, which is half way along the geodesic between them."""
    A, B = covariance(4, 8), covariance(4, 8, seed=1)

    def square_distance(X: Tensor, Y: Tensor) -> Tensor:
        L = torch.linalg.cholesky(X)
        half = torch.linalg.solve_triangular(L, Y, upper=False)
        S = torch.linalg.solve_triangular(L, half.mT, upper=False)
        return torch.linalg.eigvalsh((S + S.mT) / 2).log().square().sum()

    least = 0.5 * float(square_distance(A, B))
    return Problem(
        model_of(torch.eye(4, dtype=torch.float64), AFFINE),
        lambda m: square_distance(m.W, A) + square_distance(m.W, B),
        least,
    )


def rosenbrock() -> Problem:
    def loss(m: nn.Module) -> Tensor:
        x = m.W
        return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()

    return Problem(model_of(torch.tensor([-1.2, 1.0], dtype=torch.float64)), loss, 0.0)


def regression() -> Problem:
    """Inputs that are rotated, then scaled: an orthogonal matrix beside plain parameters."""
    X, Q = gaussian(40, 5), start("orthogonal", 5, 5, seed=3)
    Y = 2 * X @ Q + 1
    model = model_of(start("orthogonal", 5, 5), "orthogonal")
    # Only matrices with the determinant of Q can be reached.
    with torch.no_grad():
        if torch.det(model.W) * torch.det(Q) < 0:
            model.W[0].neg_()
    model.scale = nn.Parameter(torch.ones((), dtype=torch.float64))
    model.bias = nn.Parameter(torch.zeros(5, dtype=torch.float64))
    return Problem(model, lambda m: (m.scale * X @ m.W + m.bias - Y).square().mean(), 0.0)


AFFINE = {"name": "positive_definite", "metric": "affine_invariant"}

SMOOTH = [
    eigenvector,
    procrustes,
    principal_components,
    brockett,
    completion,
    correlation,
    likelihood,
    geometric_mean,
    rosenbrock,
    regression,
]


def least_squares(spec: Any, shape: tuple[int, ...], target: Tensor) -> Problem:
    """The distance from a tensor outside of a set with a boundary, in a metric of its own."""
    constraint = get(spec)() if isinstance(spec, str) else spec
    weights = torch.linspace(1, 3, target.numel(), dtype=torch.float64).reshape(shape)
    value = start(constraint, *shape)

    def loss(m: nn.Module) -> Tensor:
        return (weights * (m.W - target).square()).sum()

    least = constraint.project_scaled(target, weights)
    return Problem(
        model_of(value, constraint), loss, float((weights * (least - target).square()).sum())
    )
