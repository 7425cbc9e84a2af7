"""Six problems whose optimum is known from elsewhere, as one model with a tensor for each.

The tensors have two dimensions, since some optimizers are for matrices only. The losses are scaled
so that their curvature is about one.
"""

import functools

import torch
from scipy.optimize import minimize, nnls
from sklearn.linear_model import Lasso
from torch import nn

from constrained import constrain

SETS = {
    "procrustes": "orthogonal",
    "eigenvector": "sphere",
    "simplex_least_squares": "simplex",
    "nnls": "nonnegative",
    "lasso": "l1_ball",
    "correlation": "correlation",
}

SMOOTH = ("procrustes", "eigenvector")

#: Higham, Computing the nearest correlation matrix (IMA J. Numer. Anal. 22, 2002): tridiagonal
#: with -1, 2, -1, n = 4. The distance is printed in the paper to its last digit here.
NEAREST_CORRELATION = 2.1337291


def _normal(*shape, seed):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _design(seed, n=6):
    """A matrix with singular values from 0.5 to 1.2, and a right-hand side."""
    U, _, Vh = torch.linalg.svd(_normal(2 * n, n, seed=seed), full_matrices=False)
    values = torch.linspace(0.5, 1.2, n, dtype=torch.float64)
    return U * values @ Vh, _normal(2 * n, seed=seed + 1)


def _least_squares(C, d, row):
    return (C @ row.flatten() - d).square().sum() / 2


def _alternating_projections(T, steps=2000):
    """The nearest correlation matrix by Dykstra's corrections, algorithm 3.3 of Higham (2002)."""
    Y, correction = T.clone(), torch.zeros_like(T)
    for _ in range(steps):
        R = Y - correction
        eigenvalues, Q = torch.linalg.eigh(R)
        X = Q * eigenvalues.clamp(min=0) @ Q.mT
        correction, Y = X - R, X.clone()
        Y.fill_diagonal_(1)
    return Y


@functools.cache
def problems():
    """The loss of each problem, where it starts, and its optimum."""
    found = {}
    A, B = _normal(5, 5, seed=1), _normal(5, 5, seed=2)
    U, values, Vh = torch.linalg.svd(A.T @ B)
    if torch.linalg.det(U @ Vh) < 0:  # The start is a rotation.
        B[:, 0] *= -1
        values = torch.linalg.svdvals(A.T @ B)
    scale = float(values.mean())
    found["procrustes"] = (
        lambda X: (A @ X - B).square().sum() / 2 / scale,
        torch.eye(5, dtype=torch.float64),
        float((A.square().sum() + B.square().sum()) / 2 - values.sum()) / scale,
    )
    M = _design(3)[0]
    M = M.T @ M
    found["eigenvector"] = (
        lambda x: (x @ M @ x.T).sum() / 2,
        nn.functional.normalize(_normal(1, 6, seed=4)),
        float(torch.linalg.eigvalsh(M)[0]) / 2,
    )
    C, d = _design(5)
    uniform = torch.full((1, 6), 1 / 6, dtype=torch.float64)
    reference = minimize(
        lambda x: float(_least_squares(C, d, torch.from_numpy(x))),
        uniform.numpy()[0],
        jac=lambda x: (C.T @ (C @ torch.from_numpy(x) - d)).numpy(),
        bounds=[(0, None)] * 6,
        constraints={"type": "eq", "fun": lambda x: x.sum() - 1, "jac": lambda x: x * 0 + 1},
        method="SLSQP",
        options={"ftol": 1e-16, "maxiter": 1000},
    )
    found["simplex_least_squares"] = (
        lambda x: _least_squares(C, d, x),
        uniform,
        float(reference.fun),
    )
    C2, d2 = _design(7)
    found["nnls"] = (
        lambda x: _least_squares(C2, d2, x),
        torch.ones(1, 6, dtype=torch.float64),
        float(nnls(C2.numpy(), d2.numpy())[1]) ** 2 / 2,
    )
    C3, d3 = _design(9)
    lasso = Lasso(alpha=0.2 / len(d3), fit_intercept=False, tol=1e-14, max_iter=10**6)
    best = torch.from_numpy(lasso.fit(C3.numpy(), d3.numpy()).coef_)
    found["lasso"] = (
        lambda x: _least_squares(C3, d3, x),
        torch.full((1, 6), 0.01, dtype=torch.float64),
        float(_least_squares(C3, d3, best)),
    )
    found["lasso_radius"] = float(best.abs().sum())
    T = 2 * torch.eye(4, dtype=torch.float64)
    T -= torch.diag(torch.ones(3, dtype=torch.float64), 1)
    T -= torch.diag(torch.ones(3, dtype=torch.float64), -1)
    found["correlation"] = (
        # The map of the parametrization is quadratic, and its curvature four times as large.
        lambda X: (X - T).square().sum() / 8,
        torch.eye(4, dtype=torch.float64),
        float((_alternating_projections(T) - T).square().sum()) / 8,
    )
    return found


class Model(nn.Module):
    """A tensor for each of some problems, in its set."""

    def __init__(self, mode, names=tuple(SETS), dtype=torch.float64, **options):
        super().__init__()
        self.names = names
        for name in names:
            start = problems()[name][1].to(dtype)
            setattr(self, name, nn.Parameter(start.clone()))
            spec = {"name": SETS[name]}
            if name == "lasso":
                spec["radius"] = problems()["lasso_radius"]
            constrain(self, name, spec, mode=mode, **options)

    def loss(self):
        """The sum of the losses; each tensor sees its own only."""
        return sum(problems()[name][0](getattr(self, name)) for name in self.names)

    @torch.no_grad()
    def gaps(self):
        """How far each loss is above its optimum, relative to how far it was at the start."""
        found = {}
        for name in self.names:
            loss, start, best = problems()[name]
            found[name] = float((loss(getattr(self, name)) - best) / (loss(start) - best))
        return found
