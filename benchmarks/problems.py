"""Optimization problems on constraint sets, whose optimum is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Problem:
    """Minimize ``loss`` over the set of ``spec``.

    Attributes:
        name: in words.
        spec: the constraint.
        start: a member, where all contenders start.
        loss: how far the value of the objective is from its optimum, relative to what it is at the
            start: 1 there, 0 at the optimum.
        target: the loss that counts as solved.
    """

    name: str
    spec: str
    start: Tensor
    loss: Callable[[Tensor], Tensor]
    target: float


def procrustes(seed: int, n: int = 256, p: int = 32) -> Problem:
    """Find the orthonormal columns that a matrix was multiplied by: ``||A W - A W0||^2``."""
    g = torch.Generator().manual_seed(seed)
    A = torch.randn(n, n, generator=g) / n**0.5
    B = A @ _orthonormal(n, p, g)
    return _problem(
        f"Procrustes, {n} x {p}",
        "orthogonal",
        _orthonormal(n, p, g),
        lambda W: (A @ W - B).square().sum(),
        0.0,
        1e-3,
    )


def principal_components(seed: int, n: int = 256, p: int = 32) -> Problem:
    """The subspace of the largest variance: ``-tr(W' C W)``, with variances that fall like 1/k."""
    g = torch.Generator().manual_seed(seed)
    variances = 1 / torch.arange(1, n + 1)
    Q = _orthonormal(n, n, g)
    C = Q * variances @ Q.T
    return _problem(
        f"principal components, {n} x {p}",
        "orthogonal",
        _orthonormal(n, p, g),
        lambda W: -(W * (C @ W)).sum(),
        -float(variances[:p].sum()),
        1e-2,
    )


def completion(seed: int, n: int = 256, rank: int = 8, observed: float = 0.3) -> Problem:
    """A matrix of low rank from some of its entries."""
    g = torch.Generator().manual_seed(seed)
    M = torch.randn(n, rank, generator=g) @ torch.randn(rank, n, generator=g) / rank**0.5
    seen = torch.rand(n, n, generator=g) < observed
    start = torch.randn(n, rank, generator=g) @ torch.randn(rank, n, generator=g) / rank**0.5
    return _problem(
        f"completion, {n} x {n}, rank {rank}, {observed:.0%} observed",
        f"low_rank(rank={rank})",
        start,
        lambda W: ((W - M) * seen).square().sum(),
        0.0,
        1e-3,
    )


def covariance(seed: int, n: int = 32) -> Problem:
    """The likelihood of Gaussian samples, whose optimum is their own covariance."""
    g = torch.Generator().manual_seed(seed)
    scales = torch.logspace(-1, 1, n)
    samples = torch.randn(10 * n, n, generator=g) * scales @ _orthonormal(n, n, g)
    S = samples.T @ samples / len(samples)

    def likelihood(W: Tensor) -> Tensor:
        L = torch.linalg.cholesky(W)
        return 2 * L.diagonal().log().sum() + torch.cholesky_solve(S.to(W.dtype), L).trace()

    return _problem(
        f"covariance, {n} x {n}",
        "positive_definite",
        torch.eye(n),
        likelihood,
        float(likelihood(S.double())),
        1e-3,
    )


def _problem(
    name: str,
    spec: str,
    start: Tensor,
    objective: Callable[[Tensor], Tensor],
    optimum: float,
    target: float,
) -> Problem:
    begin = float(objective(start))

    def loss(W: Tensor) -> Tensor:
        return (objective(W) - optimum) / (begin - optimum)

    return Problem(name, spec, start, loss, target)


def _orthonormal(n: int, p: int, generator: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(n, p, generator=generator)).Q.contiguous()
