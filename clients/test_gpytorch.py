"""GPyTorch and BoTorch: kernels whose parameters, raw or plain, are constrained."""

import copy
import re
import warnings
from typing import ClassVar

import gpytorch
import pyro
import pytest
import torch
from botorch.acquisition import LogExpectedImprovement
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.optim import optimize_acqf
from botorch.optim.utils import sample_all_priors
from gpytorch.kernels import (
    IndexKernel,
    InducingPointKernel,
    Kernel,
    PeriodicKernel,
    RBFKernel,
    ScaleKernel,
)
from torch import nn
from torch.nn.utils import parametrize as torch_parametrize
from trained import same, trains, values

import constrained.parametrize as P
from constrained import (
    assert_feasible,
    baked_state_dict,
    constrain,
    load,
    release,
    save,
    spec,
    writable,
)

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


def fit(model, steps=4, parameters=None):
    model.train()
    mll = gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)
    optimizer = torch.optim.Adam(parameters or model.parameters(), lr=0.1)
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


class Halved(nn.Module):
    def forward(self, x):
        return x / 2

    def right_inverse(self, x):
        return x * 2


def batch(outer=(2,)):
    inner = RBFKernel(batch_shape=torch.Size([2]))
    inner.lengthscale = torch.tensor([0.1, 1.0]).view(2, 1, 1)
    kernel = ScaleKernel(inner, batch_shape=torch.Size(outer))
    kernel.outputscale = torch.rand(outer) + 0.5
    return kernel


INNER, OUTER = "base_kernel.raw_lengthscale", "raw_outputscale"
BATCHES = {
    "inner": (batch, [INNER]),
    "outer": (batch, [OUTER]),
    "both": (batch, [INNER, OUTER]),
    "inner alone is a batch": (lambda: batch(()), [INNER, OUTER]),
    "sum": (lambda: batch() + RBFKernel(), [f"kernels.0.{INNER}", "kernels.1.raw_lengthscale"]),
    "product": (lambda: batch() * RBFKernel(), [f"kernels.0.{OUTER}"]),
}
INDICES = {
    "some": torch.tensor([1, 0]),
    "one": 1,
    "a slice": slice(1),
    "an entry": (1, slice(2), slice(3)),
    "rows": (..., slice(2), slice(3)),
}


@pytest.fixture(params=BATCHES)
def kernels(request):
    """A plain kernel, and the same with constraints."""
    make, paths = BATCHES[request.param]
    plain = make()
    return plain, constrain(copy.deepcopy(plain), dict.fromkeys(paths, "interval(-4, 4)"))


def gradients(kernel, index):
    """Which parameters have a gradient through an indexed covariance."""
    covariance = kernel(torch.rand(2, 4, 1))[index].to_dense()
    if covariance.requires_grad:
        covariance.sum().backward()
    return [p.grad is not None for p in kernel.parameters()]


class TestBatches:
    x = torch.linspace(0, 1, 8).view(2, 4, 1)

    @pytest.mark.parametrize("name", INDICES)
    def test_a_covariance_is_indexed(self, kernels, name):
        plain, kernel = kernels
        index = INDICES[name]
        torch.testing.assert_close(
            kernel(self.x)[index].to_dense(), plain(self.x)[index].to_dense()
        )
        assert gradients(kernel, index) == gradients(plain, index)

    def test_a_kernel_is_indexed(self, kernels):
        plain, kernel = kernels
        before = baked_state_dict(kernel)
        one = kernel[1]
        assert one.batch_shape == plain[1].batch_shape == ()
        torch.testing.assert_close(one(self.x[1]).to_dense(), plain(self.x).to_dense()[1])
        assert all(torch.equal(before[k], v) for k, v in baked_state_dict(kernel).items())

    def test_a_kernel_is_expanded_and_trained(self, kernels):
        plain, kernel = kernels
        x = self.x.expand(3, 2, 4, 1)
        larger = kernel.expand_batch(3, 2)
        assert larger.batch_shape == (3, 2)
        assert spec(larger) == spec(kernel)
        assert all(value.shape[:2] == (3, 2) for value in values(larger).values())
        expected = plain.expand_batch(3, 2)(x).to_dense()
        torch.testing.assert_close(larger(x).to_dense(), expected)
        assert kernel.expand_batch(kernel.batch_shape) is kernel
        before = baked_state_dict(kernel)
        free = [p for n, p in larger.named_parameters() if "parametrizations" in n]
        optimizer = torch.optim.SGD(free, lr=10.0)
        larger(x).to_dense()[..., 0, 1].sum().neg().backward()
        optimizer.step()
        assert_feasible(larger)
        assert not torch.allclose(larger(x).to_dense(), expected)
        assert all(torch.equal(before[k], v) for k, v in baked_state_dict(kernel).items())

    def test_predictions_of_one_of_several_outputs(self):
        def predicted(path):
            kernel = batch() if path is None else constrain(batch(), path, "interval(-4, 4)")
            kernel.outputscale = torch.tensor([0.5, 1.5])
            mean = gpytorch.means.ZeroMean(batch_shape=torch.Size([2]))
            found = gpytorch.distributions.MultivariateNormal(mean(self.x), kernel(self.x))[1]
            assert found.rsample().shape == (4,)
            return found.covariance_matrix

        torch.testing.assert_close(predicted(INNER), predicted(None))
        torch.testing.assert_close(predicted(OUTER), predicted(None))

    def test_a_constraint_across_the_batch(self):
        kernel = ScaleKernel(RBFKernel(), batch_shape=torch.Size([1]))
        constrain(kernel, "raw_outputscale", "sphere")
        value = kernel.outputscale.detach()
        torch.testing.assert_close(kernel[0].outputscale, value[0])
        with pytest.raises(ValueError, match=r"'raw_outputscale' of ScaleKernel.*\(3,\).*release"):
            kernel.expand_batch(torch.Size([3]))

    @pytest.mark.parametrize("engine", [P, torch_parametrize])
    def test_any_parametrization(self, engine):
        kernel = constrain(PeriodicKernel(batch_shape=torch.Size([2])), "raw_period_length", "ball")
        kernel.lengthscale = torch.tensor([0.5, 2.0]).view(2, 1, 1)
        value = kernel.lengthscale.detach()
        engine.register_parametrization(kernel, "raw_lengthscale", Halved())
        torch.testing.assert_close(kernel[1].lengthscale, value[1])
        larger = kernel.expand_batch(3, 2)
        torch.testing.assert_close(larger.lengthscale, value.expand(3, 2, 1, 1))
        assert isinstance(larger.parametrizations.raw_lengthscale[0], Halved)

    def test_parameters_keep_their_order(self):
        kernel = PeriodicKernel(batch_shape=torch.Size([2]))
        names = [name for name, _ in kernel.named_parameters()]
        constrain(kernel, names[0], "interval(-2, 2)")
        kernel.register_parameter("late", nn.Parameter(torch.zeros(2, 1)))
        assert [name for name, _ in kernel[1].named_parameters()] == [*names, "late"]
        larger = release(kernel.expand_batch(3, 2))
        assert [name for name, _ in larger.named_parameters()] == [*names, "late"]

    def test_a_kernel_that_copies_itself(self):
        likelihood = gpytorch.likelihoods.GaussianLikelihood()
        kernel = InducingPointKernel(RBFKernel(), torch.rand(3, 1), likelihood)
        constrain(kernel, "inducing_points", "interval(-1, 2)")
        twin = copy.deepcopy(kernel)
        assert spec(twin) == spec(kernel)
        same(kernel, twin)
        twin.inducing_points = torch.zeros(3, 1)
        assert (kernel.inducing_points != 0).all()


class Approximate(gpytorch.models.ApproximateGP):
    def __init__(self):
        distribution = gpytorch.variational.CholeskyVariationalDistribution(4)
        points = torch.linspace(0, 1, 4).unsqueeze(-1)
        super().__init__(gpytorch.variational.VariationalStrategy(self, points, distribution))
        self.mean_module = gpytorch.means.ConstantMean()
        self.covar_module = ScaleKernel(RBFKernel())

    forward = Regression.forward


def test_a_variational_parameter_is_chosen_by_its_path():
    model = Approximate()
    path = "variational_strategy._variational_distribution.variational_mean"
    constrain(model, path, "ball(radius=2)")
    free = f"{path.replace('variational_mean', 'parametrizations.variational_mean')}.original"
    assert free in dict(model.named_parameters())
    assert free not in dict(model.named_variational_parameters())
    assert free in dict(model.named_hyperparameters())


LENGTHSCALE, NOISE = "covar_module.base_kernel.raw_lengthscale", "likelihood.noise_covar.raw_noise"


class TestScalars:
    """Positive numbers, by strings: the kernel has no transform of its own."""

    config: ClassVar = {LENGTHSCALE: "positive", NOISE: "interval(0.001, 1)"}

    @staticmethod
    def plain(transform=None):
        def positive(start):
            return gpytorch.constraints.Positive(transform=transform, initial_value=start)

        kernel = ScaleKernel(RBFKernel(lengthscale_constraint=positive(0.5)))
        likelihood = gpytorch.likelihoods.GaussianLikelihood(noise_constraint=positive(0.1))
        return Regression(kernel, likelihood)

    def model(self):
        return constrain(self.plain(), self.config)

    def test_numbers_are_read_and_set(self):
        model = self.model()
        kernel = model.covar_module.base_kernel
        assert kernel.lengthscale.item() == 0.5
        kernel.lengthscale = 0.3
        model.initialize(**{"likelihood.noise": 0.2, "covar_module.outputscale": 2.0})
        found = kernel.lengthscale, model.likelihood.noise, model.covar_module.outputscale
        torch.testing.assert_close(
            torch.stack([*map(torch.sum, found)]), torch.tensor([0.3, 0.2, 2])
        )
        with trains(model):
            fit(model)

    def test_the_optimum_is_that_of_gpytorchs_own_transform(self):
        ours, theirs = self.model(), self.plain(nn.functional.softplus)
        for model in (ours, theirs):
            # These data have no noise that could be learnt.
            model.likelihood.noise = 0.01
            fit(model, steps=400, parameters=model.covar_module.parameters())
        for mine, other in zip(predicted(ours), predicted(theirs), strict=True):
            torch.testing.assert_close(mine, other, rtol=0, atol=1e-3)
        lengthscales = [m.covar_module.base_kernel.lengthscale for m in (ours, theirs)]
        assert lengthscales[0].item() != 0.5
        torch.testing.assert_close(*lengthscales, rtol=1e-2, atol=0)

    def test_a_file_of_it_goes_into_a_plain_model(self, tmp_path):
        model = self.model()
        fit(model)
        save(model, tmp_path)
        new = load(tmp_path, self.plain())
        assert spec(new) == spec(model)
        same(model, new)
        expected = predicted(model)
        for mine, theirs in zip(predicted(new), expected, strict=True):
            torch.testing.assert_close(mine, theirs)
        released = self.plain()
        released.load_state_dict(release(model).state_dict())
        for mine, theirs in zip(predicted(released), expected, strict=True):
            torch.testing.assert_close(mine, theirs)

    @pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
    def test_a_number_outside_is_refused(self, value):
        model = self.model()
        before = {path: kept.clone() for path, kept in model.state_dict().items()}
        with pytest.raises(ValueError, match=r"'raw_lengthscale': positive\(\).*out of bounds"):
            model.covar_module.base_kernel.lengthscale = value
        with pytest.raises(ValueError, match=r"raw_noise': interval\(.*out of bounds"):
            model.likelihood.noise = value
        for path, kept in model.state_dict().items():
            assert torch.equal(kept, before[path])


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

    @pytest.mark.parametrize("low", [0.5, 40.0])
    def test_a_fit_that_begins_anew_samples_members(self, low):
        model = self.model()
        kernel = model.covar_module.base_kernel
        prior = gpytorch.priors.UniformPrior(0.0, 2.0)
        kernel.register_prior("prior", prior, "lengthscale")
        constrain(release(model), "**.raw_lengthscale", f"interval({low}, 50.0)", init="inside")
        before = kernel.lengthscale.detach().clone()
        if low > 2:
            with pytest.raises(RuntimeError, match="feasible parameter value"):
                sample_all_priors(model)
            assert torch.equal(kernel.lengthscale, before)
        else:
            for _ in range(10):
                sample_all_priors(model)
                assert not torch.equal(kernel.lengthscale, before)
                assert_feasible(model)

    @pytest.mark.parametrize("value", [50.0, torch.tensor([[0.5, 50.0]]), float("nan")])
    def test_a_value_out_of_bounds_is_one_for_both(self, value):
        kernel = self.model().covar_module.base_kernel
        before = kernel.lengthscale.detach().clone()
        with pytest.raises(RuntimeError, match="out of bounds of its current constraints") as told:
            kernel.lengthscale = value
        assert isinstance(told.value, ValueError)
        assert str(told.value).count("out of bounds") == 1
        assert torch.equal(kernel.lengthscale, before)

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

    @pytest.mark.parametrize(
        ("spec", "is_lost"),
        [
            *((spec, True) for spec in ("at_most(3.0)", "positive", "at_least(0.29)", "sphere")),
            *((spec, False) for spec in ("interval(0.3, 3.0)", "at_least(0.3)")),
        ],
    )
    def test_a_bound_that_is_lost_is_told(self, spec, is_lost):
        bound = gpytorch.constraints.GreaterThan(0.3, transform=None, initial_value=0.5)
        kernel = RBFKernel(ard_num_dims=2, lengthscale_constraint=bound)
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            constrain(ScaleKernel(kernel), "base_kernel.raw_lengthscale", spec)
        expected = r"'base_kernel.raw_lengthscale' had GreaterThan\(3.000E-01\) of GPyTorch"
        told = [w for w in found if re.match(expected, str(w.message))]
        assert len(told) == is_lost
        assert all(w.filename == __file__ for w in told)

    def test_a_bound_is_looked_at_where_the_tensor_is(self):
        bound = gpytorch.constraints.GreaterThan(0.3, transform=None, initial_value=0.5)
        kernel = RBFKernel(ard_num_dims=2, lengthscale_constraint=bound)
        with torch.device("meta"):
            constrain(kernel, "raw_lengthscale", "at_least(0.3)")
        assert kernel.raw_lengthscale.device.type == "cpu"

    @pytest.mark.parametrize("outputs", [[1], [1, 0]])
    def test_some_outputs(self, outputs):
        x = torch.rand(8, 2, dtype=torch.float64)
        plain = SingleTaskGP(x, torch.stack([x.sum(-1), (3 * x).sin().sum(-1)], -1))
        raw = torch.tensor([[[0.1, 0.2]], [[0.4, 0.7]]], dtype=torch.float64)
        plain.covar_module.raw_lengthscale.data.copy_(raw)
        model = constrain(copy.deepcopy(plain), "covar_module.raw_lengthscale", "interval(0.05, 1)")
        before = baked_state_dict(model)
        found, expected = model.subset_output(outputs), plain.subset_output(outputs)
        torch.testing.assert_close(found.posterior(x).mean, expected.posterior(x).mean)
        assert spec(found) == spec(model)
        assert all(torch.equal(before[k], v) for k, v in baked_state_dict(model).items())

    @pytest.mark.filterwarnings("ignore:'covar_module.raw_lengthscale' had GreaterThan")
    def test_some_outputs_of_a_constraint_across_them(self):
        x = torch.rand(8, 2, dtype=torch.float64)
        model = SingleTaskGP(x, torch.stack([x[:, 0], x[:, 1] ** 2], -1))
        view = "o a d -> (o a d)"
        constrain(model, "covar_module.raw_lengthscale", "sphere", view=view)
        with pytest.raises(ValueError, match=r"'covar_module.raw_lengthscale'.*release"):
            model.subset_output([1])


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
