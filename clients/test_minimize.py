"""Gaussian processes of GPyTorch and BoTorch, fitted by `constrained.minimize`."""

import warnings

import gpytorch
import pytest
import torch
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from gpytorch.kernels import RBFKernel, ScaleKernel

from constrained import assert_feasible, constrain, minimize

RAW_LENGTHSCALE = "covar_module.base_kernel.raw_lengthscale"

METHODS = ("L-BFGS-B", "trust-constr", "SLSQP")

#: BoTorch bounds the noise without a transform, and its own optimizers alone enforce that.
NOISE = {"likelihood.noise_covar.raw_noise": "at_least(bound=1e-4)"}


def _botorch_model():
    x = torch.rand(12, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = (4 * x).sin().sum(-1, keepdim=True)
    y = (y - y.mean()) / y.std()
    return SingleTaskGP(x, y, covar_module=ScaleKernel(RBFKernel(ard_num_dims=2)))


def _likelihood(model):
    return gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)


def _loss(mll):
    output = mll.model(*mll.model.train_inputs)
    return -mll(output, mll.model.train_targets)


def test_botorch_is_fitted_as_by_its_own_fit():
    reference = _likelihood(_botorch_model())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit_gpytorch_mll(reference)
    reference.train()
    best = _loss(reference).item()
    ours = _likelihood(constrain(_botorch_model(), NOISE)).train()
    result = minimize(ours, _loss, tol=1e-10)
    assert result.fun < best + 1e-4 * (1 + abs(best))
    assert result.fun == pytest.approx(_loss(ours).item(), rel=1e-9)


@pytest.mark.parametrize("mode", ["parametrize", "project"])
def test_botorch_with_a_bound_that_is_reached(mode):
    bounded = {RAW_LENGTHSCALE: "box(low=-3, high=-1)", **NOISE}
    model = constrain(_botorch_model(), bounded, mode=mode)
    mll = _likelihood(model).train()
    before = _loss(mll).item()
    result = minimize(mll, _loss)
    assert result.fun < before
    assert_feasible(model)
    raw = model.covar_module.base_kernel.raw_lengthscale.detach()
    # Without the bound the lengthscales are longer: the fit is at the end of the interval.
    assert torch.equal(raw, torch.full_like(raw, -1))
    model.eval()
    mean = model.posterior(torch.full((1, 2), 0.5, dtype=torch.float64)).mean
    assert torch.isfinite(mean).all()


class _Exact(gpytorch.models.ExactGP):
    def __init__(self, x, y, likelihood):
        super().__init__(x, y, likelihood)
        self.mean_module = gpytorch.means.ConstantMean()
        self.covar_module = ScaleKernel(RBFKernel())

    def forward(self, x):
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


def test_gpytorch_is_fitted_better_than_by_adam():
    x = torch.linspace(0, 1, 20, dtype=torch.float64)
    y = torch.sin(6 * x) + 0.1 * torch.cos(40 * x)

    def fresh():
        model = _Exact(x, y, gpytorch.likelihoods.GaussianLikelihood()).double()
        constrain(model, RAW_LENGTHSCALE, "interval(-4, 2)")
        return _likelihood(model).train()

    adam = fresh()
    optimizer = torch.optim.Adam(adam.parameters(), lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        _loss(adam).backward()
        optimizer.step()
    ours = fresh()
    result = minimize(ours, _loss)
    assert result.success and result.fun <= _loss(adam).item() + 1e-6
    assert_feasible(ours)


def _plain_bounds(model):
    """All bounds without a transform as constraints, by the names of their parameters."""
    return {
        name: {"name": "at_least", "bound": bound.lower_bound.item()}
        for name, _, bound in model.named_parameters_and_constraints()
        if bound is not None and not bound.enforced
    }


@pytest.mark.parametrize("mode", ["parametrize", "project"])
@pytest.mark.parametrize("method", METHODS)
def test_each_method_with_bounds_fits_as_well_as_botorch(method, mode):
    x = torch.linspace(0, 1, 15, dtype=torch.float64)[:, None]
    y = torch.sin(6 * x) + 0.1 * torch.cos(40 * x)
    reference = _likelihood(SingleTaskGP(x, y))
    fit_gpytorch_mll(reference)
    best = _loss(reference.train()).item()
    model = SingleTaskGP(x, y)
    bounds = _plain_bounds(model)
    assert len(bounds) == 2
    ours = _likelihood(constrain(model, bounds, mode=mode)).train()
    result = minimize(ours, _loss, method, tol=1e-9)
    assert result.fun < best + 1e-4 * (1 + abs(best))
    assert_feasible(model)


@pytest.mark.parametrize("mode", ["parametrize", "project"])
@pytest.mark.parametrize("method", METHODS)
def test_each_method_reaches_a_bound(method, mode):
    x = torch.linspace(0, 1, 20, dtype=torch.float64)

    def fresh():
        likelihood = gpytorch.likelihoods.GaussianLikelihood()
        return _Exact(x, torch.sin(6 * x), likelihood).double()

    free = fresh()
    best = minimize(_likelihood(free).train(), _loss, tol=1e-12).fun
    raw = free.get_parameter(RAW_LENGTHSCALE).item()
    model = constrain(fresh(), RAW_LENGTHSCALE, f"box(low={raw - 2}, high={raw - 1})", mode=mode)
    result = minimize(_likelihood(model).train(), _loss, method, tol=1e-9)
    assert_feasible(model)
    assert result.fun > best
    reached = model.covar_module.base_kernel.raw_lengthscale.item()
    assert abs(reached - (raw - 1)) < 1e-4
