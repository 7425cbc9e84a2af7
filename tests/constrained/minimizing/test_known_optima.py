"""Problems whose optimum is known from elsewhere, by every method that should reach it."""

import numpy as np
import pytest
import torch
from scipy.optimize import isotonic_regression, nnls
from sklearn.linear_model import Lasso
from torch import nn

from constrained import assert_feasible, constrain, minimize

MODES = ("parametrize", "project")


def _normal(*shape, seed):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _model(start, constraint, mode):
    model = nn.Module()
    model.x = nn.Parameter(start.clone())
    return constrain(model, "x", constraint, mode=mode)


def _nnls():
    C, d = _normal(40, 12, seed=0), _normal(40, seed=1)
    best = float(nnls(C.numpy(), d.numpy())[1]) ** 2
    return "nonnegative", torch.ones(12).double(), lambda x: (C @ x - d).square().sum(), best


def _lasso():
    C, d = _normal(40, 12, seed=2), _normal(40, seed=3)
    lasso = Lasso(alpha=0.1, fit_intercept=False, tol=1e-15, max_iter=10**6)
    coef = torch.from_numpy(lasso.fit(C.numpy(), d.numpy()).coef_)
    assert (coef == 0).any()
    spec = {"name": "l1_ball", "radius": float(coef.abs().sum())}
    start = torch.full((12,), 0.01).double()
    return spec, start, lambda x: (C @ x - d).square().sum(), float((C @ coef - d).square().sum())


def _procrustes():
    A, B = _normal(20, 6, seed=4), _normal(20, 6, seed=5)
    U, values, Vh = torch.linalg.svd(A.mT @ B)
    best = float(A.square().sum() + B.square().sum() - 2 * values.sum())
    # A start in the component of the optimum.
    start = torch.eye(6).double()
    start[0, 0] = torch.linalg.det(U @ Vh).sign()
    return "orthogonal", start, lambda X: (A @ X - B).square().sum(), best


def _eigenvector():
    M = _normal(20, 12, seed=6)
    M = M.mT @ M + torch.eye(12)
    start = nn.functional.normalize(_normal(12, seed=7), dim=0)
    return "sphere", start, lambda x: x @ M @ x, float(torch.linalg.eigvalsh(M)[0])


def _correlation():
    # Higham (2002): tridiagonal with -1, 2, -1, n = 4. The distance there is 2.1337.
    T = 2 * torch.eye(4).double()
    T -= torch.diag(torch.ones(3), 1) + torch.diag(torch.ones(3), -1)
    X, Y, correction = T, T, torch.zeros_like(T)
    for _ in range(3000):  # Dykstra's corrections, algorithm 3.3 there.
        R = Y - correction
        values, Q = torch.linalg.eigh(R)
        X = Q * values.clamp(min=0) @ Q.mT
        correction, Y = X - R, X.clone().fill_diagonal_(1)
    best = float((Y - T).square().sum())
    assert abs(best**0.5 - 2.1337) < 1e-4
    return "correlation", torch.eye(4).double(), lambda X: (X - T).square().sum(), best


def _simplex():
    # The projection onto the simplex: max(x - t, 0), where t makes the sum one.
    wanted = torch.tensor([0.9, 0.6, 0.1, -0.4, -2.0]).double()
    nearest = (wanted - 0.25).clamp(min=0)
    best = float((nearest - wanted).square().sum())
    start = torch.full((5,), 0.2).double()
    return "simplex", start, lambda x: (x - wanted).square().sum(), best


def _ordered():
    wanted = _normal(12, seed=8)
    best = float(((isotonic_regression(wanted.numpy()).x - wanted.numpy()) ** 2).sum())
    return "ordered", torch.arange(12.0).double(), lambda x: (x - wanted).square().sum(), best


def _sum_to_zero():
    C, d = _normal(20, 5, seed=9), _normal(20, seed=10)
    basis = torch.linalg.svd(torch.ones(1, 5).double())[2][1:].mT
    found = basis @ torch.linalg.lstsq(C @ basis, d[:, None]).solution[:, 0]
    best = float((C @ found - d).square().sum())
    return "sum_to_zero", torch.zeros(5).double(), lambda x: (C @ x - d).square().sum(), best


def _symmetric():
    wanted = _normal(4, 4, seed=11)
    best = float(((wanted - wanted.mT) / 2).square().sum())
    return "symmetric", torch.eye(4).double(), lambda X: (X - wanted).square().sum(), best


def _affine():
    wanted = _normal(4, seed=12)
    A, b = [[1.0, 1.0, 0.0, 0.0], [0.0, 1.0, 2.0, -1.0]], [1.0, 2.0]
    rows, right = torch.tensor(A).double(), torch.tensor(b).double()
    missed = rows @ wanted - right
    best = float(missed @ torch.linalg.solve(rows @ rows.mT, missed))
    spec = {"name": "affine", "A": A, "b": b}
    return spec, torch.zeros(4).double(), lambda x: (x - wanted).square().sum(), best


def _row_stochastic():
    wanted = torch.tensor([[0.9, 0.6, 0.1, -0.4], [0.25, 0.25, 0.25, 0.25]]).double()
    nearest = (wanted - torch.tensor([[0.25], [0.0]])).clamp(min=0)
    best = float((nearest - wanted).square().sum())
    start = torch.full((2, 4), 0.25).double()
    return "row_stochastic", start, lambda X: (X - wanted).square().sum(), best


PROBLEMS = {
    f.__name__[1:]: f
    for f in (
        *(_nnls, _lasso, _procrustes, _eigenvector, _correlation, _simplex, _ordered),
        *(_sum_to_zero, _symmetric, _affine, _row_stochastic),
    )
}

SMOOTH = ("procrustes", "eigenvector", "sum_to_zero", "symmetric", "affine")
LINEAR = (
    "nnls",
    "lasso",
    "simplex",
    "ordered",
    "sum_to_zero",
    "symmetric",
    "affine",
    "row_stochastic",
)

#: L-BFGS-B stops at a kink of the map, and the methods below take the set itself.
KINKED = ("lasso",)

CASES = [
    *((name, "L-BFGS-B", 1e-6) for name in PROBLEMS if name not in KINKED),
    *((name, "SLSQP", 1e-8) for name in LINEAR),
    *((name, "trust-constr", 1e-6) for name in LINEAR),
    *((name, method, 1e-8) for name in SMOOTH for method in ("trust-ncg", "Newton-CG", "BFGS")),
    *((name, "TNC", 1e-6) for name in ("nnls", "eigenvector")),
    ("simplex", "COBYLA", 1e-6),
    ("sum_to_zero", "Nelder-Mead", 1e-4),
    ("eigenvector", "CG", 1e-6),
]


def gap(name, method, mode):
    """How far the loss is above the optimum, relative to it."""
    constraint, start, function, best = PROBLEMS[name]()
    model = _model(start, constraint, mode)
    tol = TOLERANCES.get(method, 1e-14)
    options = {"maxfun" if method == "TNC" else "maxiter": 20000}
    result = minimize(model, lambda m: function(m.x), method, tol=tol, options=options)
    assert_feasible(model)
    assert np.isclose(result.fun, float(function(model.x.detach())), rtol=1e-12, atol=1e-14)
    return (result.fun - best) / best


#: Rounding keeps the gradient from getting smaller where its norm is the tolerance.
TOLERANCES = {"trust-ncg": 1e-9, "BFGS": 1e-9, "CG": 1e-9, "trust-constr": 1e-12}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("name", "method", "most"), CASES)
def test_the_optimum_is_reached(name, method, most, mode):
    assert gap(name, method, mode) < most
