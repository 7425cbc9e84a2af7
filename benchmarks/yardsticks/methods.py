"""The methods that compete, each one function from a problem and a learning rate.

To add one: write a function that evaluates ``loss`` until it raises `Finished`, or evaluates it
once at its solution and returns, and put ``@method(name, ...)`` above it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import geoopt
import geotorch
import numpy
import pymanopt
import torch
from scipy import optimize
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import constrained
from benchmarks.peers import Transformed
from benchmarks.yardsticks.measure import Loss, Method, Solve
from benchmarks.yardsticks.problems import Yardstick, correlation_dual
from constrained import constrain
from constrained.constraint.spec import parse
from constrained.optim import (
    ManifoldMuon,
    RiemannianAdam,
    RiemannianCG,
    RiemannianLBFGS,
    RiemannianSGD,
)

#: The learning rates of every Adam: the root mean square of the entries of a step. One with a
#: second moment for each element takes it times the root of the number of entries of an element.
ADAM = (3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
#: Those of every gradient descent, in units of 1 / (largest eigenvalue of the Hessian at the
#: start).
DESCENT = (0.01, 0.1, 0.3, 1.0, 3.0, 10.0)
MOMENTUM = 0.9

METHODS: list[Method] = []


def method(
    name: str,
    *sets: str,
    rates: tuple[float, ...] = (),
    takes_any_loss: bool = True,
) -> Callable[[Solve], Solve]:
    """Register a method.

    ``sets`` are the constraints that it knows, or keys of the data that it needs; all if none is
    given.
    """

    def register(solve: Solve) -> Solve:
        METHODS.append(Method(name, solve, sets or None, rates, takes_any_loss))
        return solve

    return register


def methods_for(yardstick: Yardstick) -> list[Method]:
    """Those that know the set of a problem, or are made for its data."""
    known = {yardstick.set_name, *yardstick.data}
    return [m for m in METHODS if m.sets is None or known.intersection(m.sets)]


#: Every L-BFGS-B goes on until the loss says that it is enough.
_UNTIL_SOLVED = {"maxiter": 10**6, "maxfun": 10**6, "ftol": 0, "gtol": 0, "maxcor": 20}


class Holder(nn.Module):
    """A module that holds one weight."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.clone())


def descend(
    optimizer: torch.optim.Optimizer, read: Callable[[], Tensor], loss: Callable[[Tensor], Tensor]
) -> None:
    """Step until the loss says that it is enough."""

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(read())
        value.backward()
        return value

    while True:
        optimizer.step(closure)


def lbfgs(module: nn.Module) -> torch.optim.LBFGS:
    """Torch's, alike for all who use it; it ends when the loss says so."""
    return torch.optim.LBFGS(
        module.parameters(),
        max_iter=20,
        history_size=20,
        tolerance_grad=1e-13,
        tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )


def element_rate(y: Yardstick, rate: float) -> float:
    """The length of a step of an element whose entries move by ``rate``."""
    element = {"correlation": y.start[0], "nonnegative": y.start[0]}.get(y.set_name, y.start)
    return rate * element.numel() ** 0.5


# ------------------------------------------------------------------------- this library


def _constrained(y: Yardstick, mode: str) -> nn.Module:
    return constrain(Holder(y.start), "weight", y.spec, init="strict", mode=mode)


def _of_constrained(
    mode: str, make: Callable[[Yardstick, nn.Module, float], torch.optim.Optimizer]
) -> Solve:
    def solve(y: Yardstick, loss: Loss, rate: float) -> None:
        module: Any = _constrained(y, mode)
        descend(make(y, module, rate), lambda: module.weight, loss)

    return solve


def _adam(y: Yardstick, module: nn.Module, rate: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(module.parameters(), lr=rate)


def _sgd(y: Yardstick, module: nn.Module, rate: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=rate / y.curvature, momentum=MOMENTUM)


def _lbfgs(y: Yardstick, module: nn.Module, rate: float) -> torch.optim.Optimizer:
    return lbfgs(module)


method("constrained, parametrize, Adam", rates=ADAM)(_of_constrained("parametrize", _adam))
method("constrained, parametrize, L-BFGS")(_of_constrained("parametrize", _lbfgs))
method("constrained, project, Adam", rates=ADAM)(_of_constrained("project", _adam))
method("constrained, project, SGD", rates=DESCENT)(_of_constrained("project", _sgd))
method("constrained, project, L-BFGS")(_of_constrained("project", _lbfgs))


@method("constrained.minimize, L-BFGS-B")
def _minimize(y: Yardstick, loss: Loss, rate: float) -> None:
    module: Any = _constrained(y, "parametrize")
    constrained.minimize(module, lambda m: loss(m.weight), progress=False, options=_UNTIL_SOLVED)


def _of_optim(make: Callable[..., torch.optim.Optimizer]) -> Solve:
    def solve(y: Yardstick, loss: Loss, rate: float) -> None:
        W = nn.Parameter(y.start.clone())
        # Conjugate gradients and L-BFGS know smooth sets; a correlation matrix is W W', with rows
        # on the sphere.
        spec = {
            "correlation": "sphere",
            "positive_definite": "positive_definite(metric='affine_invariant')",
        }.get(y.set_name, y.spec)
        read = (lambda: W @ W.T) if y.set_name == "correlation" else (lambda: W)
        optimizer = make([W], y, rate, constraint=spec)
        descend(optimizer, read, loss)

    return solve


_SMOOTH = ("orthogonal", "positive_definite", "correlation", "low_rank")
_PATIENT = {"max_iter": 20, "tolerance_grad": 1e-13}
method("constrained.optim, RiemannianSGD", rates=DESCENT)(
    _of_optim(lambda W, y, rate, **of: RiemannianSGD(W, rate / y.curvature, MOMENTUM, **of))
)
method("constrained.optim, RiemannianAdam", rates=ADAM)(
    _of_optim(lambda W, y, rate, **of: RiemannianAdam(W, element_rate(y, rate), **of))
)
# The length of its steps is their largest singular value, that of all of them.
method("constrained.optim, ManifoldMuon", "orthogonal", rates=ADAM)(
    _of_optim(lambda W, y, rate, **of: ManifoldMuon(W, rate * max(y.start.shape) ** 0.5, **of))
)
method("constrained.optim, RiemannianCG", *_SMOOTH)(
    _of_optim(lambda W, y, rate, **of: RiemannianCG(W, **_PATIENT, **of))
)
method("constrained.optim, RiemannianLBFGS", *_SMOOTH)(
    _of_optim(lambda W, y, rate, **of: RiemannianLBFGS(W, **_PATIENT, history_size=20, **of))
)


@method("constrained, nearest member", "nearest to", takes_any_loss=False)
def _nearest(y: Yardstick, loss: Loss, rate: float) -> None:
    loss(parse(y.spec).constraint.retract(y.data["nearest to"]))


# -------------------------------------------------------------------------------- geoopt


def _geoopt(
    make: Callable[[Yardstick, list[nn.Parameter], float], torch.optim.Optimizer],
) -> Solve:
    def solve(y: Yardstick, loss: Loss, rate: float) -> None:
        manifold: geoopt.Manifold = {
            "orthogonal": geoopt.EuclideanStiefel,
            "positive_definite": geoopt.SymmetricPositiveDefinite,
            "correlation": geoopt.Sphere,
        }[y.set_name]()
        W = geoopt.ManifoldParameter(y.start.clone(), manifold=manifold)
        # A correlation matrix is W W', with rows on the sphere.
        read = (lambda: W @ W.T) if y.set_name == "correlation" else (lambda: W)
        descend(make(y, [W], rate), read, loss)

    return solve


_OF_GEOOPT = ("orthogonal", "positive_definite", "correlation")
method("geoopt, RiemannianAdam", *_OF_GEOOPT, rates=ADAM)(
    _geoopt(lambda y, W, rate: geoopt.optim.RiemannianAdam(W, lr=element_rate(y, rate)))
)
method("geoopt, RiemannianSGD", *_OF_GEOOPT, rates=DESCENT)(
    _geoopt(
        lambda y, W, rate: geoopt.optim.RiemannianSGD(W, lr=rate / y.curvature, momentum=MOMENTUM)
    )
)


# ------------------------------------------------------------------------------ pymanopt


def _pymanopt(y: Yardstick) -> tuple[Any, Any, Callable[..., Tensor]]:
    """The manifold, the point on it to start from, and the matrix that a point stands for."""
    manifolds, n, start = pymanopt.manifolds, len(y.start), y.start.numpy()
    if y.set_name == "orthogonal":
        return manifolds.Stiefel(*y.start.shape), start, lambda W: W
    if y.set_name == "positive_definite":
        return manifolds.SymmetricPositiveDefinite(n), start, lambda W: W
    if y.set_name == "correlation":
        return manifolds.Oblique(n, n), start, lambda W: W.T @ W
    rank = int(y.data["rank"])
    U, S, Vh = torch.linalg.svd(y.start, full_matrices=False)
    point = tuple(part.numpy() for part in (U[:, :rank], S[:rank], Vh[:rank]))
    manifold = manifolds.FixedRankEmbedded(*y.start.shape, rank)
    return manifold, point, lambda u, s, vt: (u * s) @ vt


def _by_pymanopt(make: Callable[[], Any]) -> Solve:
    def solve(y: Yardstick, loss: Loss, rate: float) -> None:
        manifold, point, matrix = _pymanopt(y)

        # Its signature says how many arrays a point has.
        if y.set_name == "low_rank":

            @pymanopt.function.pytorch(manifold)
            def cost(u: Tensor, s: Tensor, vt: Tensor) -> Tensor:
                return loss(matrix(u, s, vt))

        else:

            @pymanopt.function.pytorch(manifold)
            def cost(W: Tensor) -> Tensor:  # type: ignore[misc]
                return loss(matrix(W))

        # At the optimum its step length is 0 / 0, and it stops.
        with numpy.errstate(all="ignore"):
            make().run(pymanopt.Problem(manifold, cost), initial_point=point)

    return solve


_OF_PYMANOPT = ("orthogonal", "positive_definite", "correlation", "low_rank")
_ENDLESS = {"max_iterations": 10**6, "min_gradient_norm": 0, "verbosity": 0, "max_time": 1e6}
method("pymanopt, CG", *_OF_PYMANOPT)(
    _by_pymanopt(lambda: pymanopt.optimizers.ConjugateGradient(**_ENDLESS, min_step_size=1e-14))
)
# Its second derivatives of a matrix of fixed rank have other shapes than its tangent vectors.
method("pymanopt, trust regions", *_OF_PYMANOPT[:-1])(
    _by_pymanopt(lambda: pymanopt.optimizers.TrustRegions(**_ENDLESS))
)


# -------------------------------------------------------------------- geotorch and torch


def _geotorch(y: Yardstick) -> tuple[nn.Module, Callable[[], Tensor]]:
    module: Any = Holder(y.start)
    if y.set_name == "low_rank":
        geotorch.low_rank(module, "weight", rank=int(y.data["rank"]))
    else:
        made = {"correlation": "sphere"}.get(y.set_name, y.set_name)
        getattr(geotorch, made)(module, "weight")
    inside = module.parametrizations.weight
    start = y.start
    original = inside[0].right_inverse(start, check_in_manifold=False)
    with torch.no_grad():
        inside.original.copy_(original)
    if y.set_name == "correlation":
        return module, lambda: module.weight @ module.weight.T
    return module, lambda: module.weight


def _by_torch(y: Yardstick) -> tuple[nn.Module, Callable[[], Tensor]]:
    """What torch has, and what people write by hand where it has nothing."""
    module: Any = Holder(y.start)
    if y.set_name == "orthogonal":
        parametrizations.orthogonal(module, "weight", orthogonal_map="cayley")
        module.weight = y.start
        return module, lambda: module.weight
    if y.set_name == "low_rank":
        rank = int(y.data["rank"])
        U, S, Vh = torch.linalg.svd(y.start, full_matrices=False)
        root = S[:rank].sqrt()
        factors = nn.ParameterList(
            [(U[:, :rank] * root).contiguous(), (root[:, None] * Vh[:rank]).contiguous()]
        )
        return factors, lambda: factors[0] @ factors[1]

    def correlation(F: Tensor) -> Tensor:
        F = F / F.norm(dim=-1, keepdim=True)
        return F @ F.T

    maps: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {
        "nonnegative": (lambda F: F.square(), y.start.abs().sqrt()),
        "positive_definite": (lambda F: F @ F.T, y.start.clone()),
        "correlation": (correlation, y.start.clone()),
    }
    parametrize.register_parametrization(
        module, "weight", Transformed(*maps[y.set_name]), unsafe=True
    )
    return module, lambda: module.weight


def _parametrized(
    prepare: Callable[[Yardstick], tuple[nn.Module, Callable[[], Tensor]]],
    make: Callable[[Yardstick, nn.Module, float], torch.optim.Optimizer],
) -> Solve:
    def solve(y: Yardstick, loss: Loss, rate: float) -> None:
        module, read = prepare(y)
        descend(make(y, module, rate), read, loss)

    return solve


_OF_GEOTORCH = ("orthogonal", "positive_definite", "correlation", "low_rank")
_OF_TORCH = ("orthogonal", "positive_definite", "correlation", "low_rank", "nonnegative")
method("geotorch, Adam", *_OF_GEOTORCH, rates=ADAM)(_parametrized(_geotorch, _adam))
method("geotorch, L-BFGS", *_OF_GEOTORCH)(_parametrized(_geotorch, _lbfgs))
method("torch, Adam", *_OF_TORCH, rates=ADAM)(_parametrized(_by_torch, _adam))
method("torch, L-BFGS", *_OF_TORCH)(_parametrized(_by_torch, _lbfgs))


# -------------------------------------------------- solvers that are made for one problem


@method("SciPy, L-BFGS-B", "nonnegative")
def _lbfgsb(y: Yardstick, loss: Loss, rate: float) -> None:
    def value(x: numpy.ndarray) -> tuple[float, numpy.ndarray]:
        X = torch.from_numpy(x).requires_grad_()
        found = loss(X)
        (gradient,) = torch.autograd.grad(found, X)
        return float(found.detach()), gradient.numpy()

    bounds = optimize.Bounds(0, numpy.inf)
    start = y.start.numpy()
    optimize.minimize(
        value, start, jac=True, bounds=bounds, method="L-BFGS-B", options=_UNTIL_SOLVED
    )


@method("SciPy, nnls", "nonnegative", takes_any_loss=False)
def _nnls(y: Yardstick, loss: Loss, rate: float) -> None:
    A, b = y.data["A"].numpy(), y.data["b"].numpy()
    loss(torch.from_numpy(optimize.nnls(A, b, maxiter=20 * A.shape[1])[0]))


@method("SciPy, lsq_linear", "nonnegative", takes_any_loss=False)
def _lsq_linear(y: Yardstick, loss: Loss, rate: float) -> None:
    A, b = y.data["A"].numpy(), y.data["b"].numpy()
    loss(torch.from_numpy(optimize.lsq_linear(A, b, bounds=(0, numpy.inf), tol=1e-12).x))


@method("scikit-learn, Lasso", "l1_ball", takes_any_loss=False)
def _sklearn(y: Yardstick, loss: Loss, rate: float) -> None:
    from sklearn.linear_model import Lasso

    A, b = y.data["A"].numpy(), y.data["b"].numpy()
    weight, radius = float(y.data["weight"]), float(y.data["radius"])
    solver = Lasso(alpha=weight / len(A), fit_intercept=False, tol=1e-10, max_iter=100_000)
    x = torch.from_numpy(solver.fit(A, b).coef_)
    loss(x * min(1.0, radius / float(x.abs().sum())))


@method("SciPy, L-BFGS-B on the dual", "correlation", takes_any_loss=False)
def _dual(y: Yardstick, loss: Loss, rate: float) -> None:
    correlation_dual(y.data["nearest to"], loss)


@method("LAPACK, one decomposition", "orthogonal", takes_any_loss=False)
def _decomposed(y: Yardstick, loss: Loss, rate: float) -> None:
    if "covariance" in y.data:
        loss(torch.linalg.eigh(y.data["covariance"]).eigenvectors[:, -y.start.shape[1] :])
    else:
        U, _, Vh = torch.linalg.svd(y.data["nearest to"])
        loss(U @ Vh)
