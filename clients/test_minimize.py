"""GPyTorch and BoTorch: marginal likelihoods of Gaussian processes, fitted by `minimize`."""

import gpytorch
import pytest
import torch
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from gpytorch.kernels import RBFKernel, ScaleKernel
from gpytorch.mlls import ExactMarginalLogLikelihood

from constrained import assert_feasible, constrain, minimize

X = torch.linspace(0, 1, 15, dtype=torch.float64)[:, None]
Y = torch.sin(6 * X) + 0.1 * torch.cos(40 * X)

METHODS = ("L-BFGS-B", "trust-constr", "SLSQP")


class Regression(gpytorch.models.ExactGP):
    def __init__(self):
        super().__init__(X, Y[:, 0], gpytorch.likelihoods.GaussianLikelihood())
        self.mean_module = gpytorch.means.ConstantMean()
        self.covar_module = ScaleKernel(RBFKernel())

    def forward(self, x):
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


def fitted(model, method, **options):
    """The marginal log-likelihood per point after a fit, and the result of the fit."""
    mll = ExactMarginalLogLikelihood(model.likelihood, model)
    model.train()

    def loss(m):
        output = m(*m.train_inputs)
        return -mll(output, m.train_targets)

    result = minimize(model, loss, method, **options)
    with torch.no_grad():
        assert abs(loss(model).item() - result.fun) < 1e-9
    return -result.fun, result


def plain_bounds(model):
    """The bounds without a transform, which BoTorch's own optimizers keep, as constraints."""
    return {
        name: {"name": "at_least", "bound": bound.lower_bound.item()}
        for name, _, bound in model.named_parameters_and_constraints()
        if bound is not None and not bound.enforced
    }


@pytest.mark.parametrize("mode", ["parametrize", "project"])
@pytest.mark.parametrize("method", METHODS)
def test_a_model_of_botorch_is_fitted_as_well_as_by_botorch(method, mode):
    theirs = SingleTaskGP(X, Y)
    mll = ExactMarginalLogLikelihood(theirs.likelihood, theirs)
    fit_gpytorch_mll(mll)
    with torch.no_grad():
        theirs.train()
        expected = mll(theirs(*theirs.train_inputs), theirs.train_targets).item()
    ours = SingleTaskGP(X, Y)
    bounds = plain_bounds(ours)
    assert len(bounds) == 2
    constrain(ours, bounds, mode=mode)
    found, _ = fitted(ours, method, tol=1e-9)
    assert_feasible(ours)
    assert expected <= found + 1e-4
    posterior = ours.eval().posterior(X)
    assert torch.isfinite(posterior.mean).all() and (posterior.variance > 0).all()


@pytest.mark.parametrize("mode", ["parametrize", "project"])
@pytest.mark.parametrize("method", METHODS)
def test_bounds_of_a_raw_parameter_hold(method, mode):
    # Without a bound the length scale is larger.
    free = Regression().double()
    best, _ = fitted(free, "L-BFGS-B", tol=1e-12)
    raw = float(free.covar_module.base_kernel.raw_lengthscale.detach())
    model = Regression().double()
    bounds = {"name": "box", "low": raw - 2, "high": raw - 1}
    constrain(model, "covar_module.base_kernel.raw_lengthscale", bounds, mode=mode)
    found, _ = fitted(model, method, tol=1e-9)
    assert_feasible(model)
    assert found < best
    reached = float(model.covar_module.base_kernel.raw_lengthscale.detach())
    assert abs(reached - bounds["high"]) < 1e-4
