"""GPyTorch and BoTorch: kernels whose parameters, raw or plain, are constrained."""

import copy
import warnings

import gpytorch
import pyro
import pytest
import torch
from botorch.acquisition import LogExpectedImprovement
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.optim import optimize_acqf
from gpytorch.kernels import IndexKernel, Kernel, RBFKernel, ScaleKernel
from torch import nn
from trained import same, trains

from constrained import assert_feasible, baked_state_dict, constrain, release, spec, writable

X = torch.linspace(0, 1, 12)
Y = torch.sin(6 * X)


class Regression(gpytorch.models.ExactGP):
    def __init__(self, kernel, likelihood):
        super().__init__(X, Y, likelihood)
        self.mean_module = gpytorch.means.ConstantMean()
        self.covar_module = kernel

    def forward(self, x):
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


class Warped(Kernel):
    """A kernel with a plain parameter, kept positive by a constraint."""

    has_lengthscale = False

    def __init__(self):
        super().__init__()
        self.register_parameter("scale", nn.Parameter(torch.tensor([2.0])))

    def forward(self, x1, x2, diag=False, **params):
        return (-self.scale * self.covar_dist(x1, x2, diag=diag).square()).exp()


KERNELS = {
    "raw": (lambda: ScaleKernel(RBFKernel()), "base_kernel.raw_lengthscale", "interval(-3, 1)"),
    "raw scale": (lambda: ScaleKernel(RBFKernel()), "raw_outputscale", "interval(-3, 3)"),
    "plain": (lambda: Warped(), "scale", "positive"),
    "several": (lambda: RBFKernel(ard_num_dims=1), "raw_lengthscale", "ball(radius=2)"),
}


def gp(name):
    make, path, constraint = KERNELS[name]
    kernel = constrain(make(), path, constraint)
    return Regression(kernel, gpytorch.likelihoods.GaussianLikelihood())


def fit(model, steps=4):
    model.train()
    mll = gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        (-mll(model(X), Y)).backward()
        optimizer.step()


def predicted(model):
    model.eval()
    with torch.no_grad():
        found = model.likelihood(model(X + 0.01))
        return found.mean, found.variance


@pytest.fixture(params=KERNELS)
def model(request):
    return gp(request.param)


def test_it_trains_and_predicts(model):
    with trains(model):
        fit(model)
    mean, variance = predicted(model)
    assert torch.isfinite(mean).all()
    assert (variance > 0).all()


def test_copies_and_checkpoints(model):
    fit(model)
    twin = copy.deepcopy(model)
    same(model, twin)
    fit(twin)
    twin.load_state_dict(model.state_dict())
    same(model, twin)
    for mine, theirs in zip(predicted(model), predicted(twin), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("name", KERNELS)
def test_plain_checkpoints(name):
    model, other = gp(name), gp(name)
    fit(model)
    other.load_state_dict(baked_state_dict(model))
    for mine, theirs in zip(predicted(model), predicted(other), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_setters_of_raw_parameters():
    kernel = constrain(RBFKernel(), "raw_lengthscale", "interval(-3, 1)")
    kernel.lengthscale = 0.9
    torch.testing.assert_close(kernel.lengthscale, torch.tensor([[0.9]]))
    kernel.initialize(lengthscale=0.5)
    torch.testing.assert_close(kernel.lengthscale, torch.tensor([[0.5]]))


def test_priors_are_part_of_the_loss():
    kernel = constrain(RBFKernel(), "raw_lengthscale", "interval(-3, 1)")
    kernel.register_prior("prior", gpytorch.priors.GammaPrior(2.0, 3.0), "lengthscale")
    model = Regression(kernel, gpytorch.likelihoods.GaussianLikelihood())
    with trains(model):
        fit(model)


def test_a_value_of_less_precision_is_assigned():
    kernel = constrain(RBFKernel(), "raw_lengthscale", "interval(-3, 1)").double()
    kernel.lengthscale = torch.tensor([[0.9]])
    assert kernel.lengthscale.dtype is torch.float64
    torch.testing.assert_close(kernel.lengthscale.item(), 0.9)


def with_a_prior():
    kernel = RBFKernel()
    kernel.register_prior("prior", gpytorch.priors.UniformPrior(0.1, 1.0), "lengthscale")
    return constrain(kernel, "raw_lengthscale", "interval(-3, 1)")


def test_a_sample_that_is_to_be_trained_is_assigned_with_a_warning():
    def sampled():
        return model.pyro_sample_from_prior().covar_module.lengthscale

    model = Regression(with_a_prior(), gpytorch.likelihoods.GaussianLikelihood())
    point = {"covar_module.prior": torch.tensor([[0.5]], requires_grad=True)}
    conditioned = pyro.condition(sampled, {k: v * 1 for k, v in point.items()})
    with pytest.warns(UserWarning, match="'raw_lengthscale' is computed by .*release"):
        torch.testing.assert_close(conditioned(), torch.tensor([[0.5]]))
    release(model)
    (gradient,) = torch.autograd.grad(conditioned().sum(), list(point.values()))
    torch.testing.assert_close(gradient, torch.ones(1, 1))


def test_samples_of_another_shape_are_refused():
    model = Regression(with_a_prior(), gpytorch.likelihoods.GaussianLikelihood())
    samples = {"covar_module.prior": torch.full((5, 1, 1), 0.5)}
    before = model.covar_module.lengthscale.detach().clone()
    with pytest.raises(ValueError, match=r"\(5, 1, 1\).*\(1, 1\).*release"):
        model.pyro_load_from_samples(samples)
    torch.testing.assert_close(model.covar_module.lengthscale.detach(), before)
    release(model).pyro_load_from_samples(samples)
    assert model.covar_module.lengthscale.shape == (5, 1, 1)


def test_their_constraints_come_first():
    greater = gpytorch.constraints.GreaterThan(0.25)
    kernel = RBFKernel()
    kernel.register_constraint("raw_lengthscale", greater)
    constrain(kernel, "raw_lengthscale", "interval(-3, 1)")
    kernel.lengthscale = 0.5
    torch.testing.assert_close(kernel.lengthscale.item(), 0.5)
    with pytest.raises(RuntimeError, match="nonexistent parameter"):
        kernel.register_constraint("raw_lengthscale", gpytorch.constraints.Positive())
    assert kernel.raw_lengthscale_constraint is greater


def test_a_task_covariance_of_low_rank():
    kernel = IndexKernel(num_tasks=3, rank=2)
    constrain(kernel, "covar_factor", "orthogonal")
    tasks = torch.tensor([0, 1, 2])
    with trains(kernel):
        optimizer = torch.optim.SGD(kernel.parameters(), lr=0.5)
        kernel(tasks).to_dense()[0, 1].backward()
        optimizer.step()
    factor = kernel.covar_factor
    torch.testing.assert_close(factor.mT @ factor, torch.eye(2))


class TestBoTorch:
    @staticmethod
    def model():
        x = torch.rand(8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        y = (x - 0.3).square().sum(-1, keepdim=True).neg()
        model = SingleTaskGP(x, y, covar_module=ScaleKernel(RBFKernel(ard_num_dims=2)))
        return constrain(model, "covar_module.base_kernel.raw_lengthscale", "interval(-3, 1)")

    def test_it_is_fitted_and_optimized(self):
        model = self.model()
        mll = gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)
        with warnings.catch_warnings(), trains(model):
            warnings.simplefilter("ignore")
            fit_gpytorch_mll(mll, optimizer_kwargs={"options": {"maxiter": 30}})
        acquisition = LogExpectedImprovement(model, best_f=-0.1)
        bounds = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
        point, _ = optimize_acqf(acquisition, bounds, q=1, num_restarts=2, raw_samples=8)
        assert ((point >= 0) & (point <= 1)).all()

    def test_conditioned_and_copied(self):
        model = self.model()
        model.eval()
        x = torch.rand(3, 2, dtype=torch.float64)
        model.posterior(x)
        more = model.condition_on_observations(x, x.sum(-1, keepdim=True))
        same(model, more)
        assert spec(more) == spec(model)
        assert_feasible(more)
        twin = self.model()
        twin.load_state_dict(model.state_dict())
        same(model, twin)


class Approximate(gpytorch.models.ApproximateGP):
    def __init__(self):
        points = torch.linspace(0, 1, 6)[:, None]
        distribution = gpytorch.variational.CholeskyVariationalDistribution(6)
        super().__init__(gpytorch.variational.VariationalStrategy(self, points, distribution))
        self.mean_module = gpytorch.means.ConstantMean()
        self.covar_module = RBFKernel()

    def forward(self, x):
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


def test_a_variational_mean_that_the_first_call_initialises():
    model = constrain(Approximate(), "**.variational_mean", "ball(radius=1.0)")
    path = "variational_strategy._variational_distribution.variational_mean"
    with pytest.raises(RuntimeError, match=rf"'{path}' is computed .*writable"):
        copy.deepcopy(model)(X[:, None])
    with writable(model):
        model(X[:, None])
    likelihood = gpytorch.likelihoods.GaussianLikelihood()
    elbo = gpytorch.mlls.VariationalELBO(likelihood, model, len(X))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with trains(model):
        for _ in range(3):
            optimizer.zero_grad()
            (-elbo(model(X[:, None]), Y)).backward()
            optimizer.step()
