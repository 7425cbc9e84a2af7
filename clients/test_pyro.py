"""Pyro: PyroModule of a constrained layer, SVI, guides, higher-order sites."""

import copy
import pickle
import re

import pyro
import pyro.distributions as dist
import pytest
import torch
from network import data, network
from pyro.distributions import constraints as theirs
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroParam, PyroSample
from pyro.nn.module import to_pyro_module_
from torch import nn
from trained import same, trains, values

from constrained import assert_feasible, constrain, load, parametrize, save, spec


@pytest.fixture(autouse=True)
def _store():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


class Regression(PyroModule):
    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x, y=None):
        mean = self.body(x)
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(mean, 0.1).to_event(1), obs=y)


def infer(model, steps=4):
    x, y = data()
    guide = AutoNormal(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    return [svi.step(x, y) for _ in range(steps)]


def made():
    layer = PyroModule[nn.Linear](6, 3)
    return constrain(Regression(layer), "body.weight", "orthogonal")


def converted():
    body = network()
    to_pyro_module_(body)
    return Regression(body)


@pytest.mark.parametrize("make", [made, converted])
def test_svi_trains_it(make):
    model = make()
    with trains(model):
        losses = infer(model)
    assert losses[-1] < losses[0]


def test_constrained_before_and_after_it_becomes_a_pyro_module():
    before = network()
    to_pyro_module_(before)
    torch.manual_seed(0)
    after = nn.Sequential(*(nn.Linear(6, 6) for _ in range(2)))
    to_pyro_module_(after)
    constrain(after, "*.weight", "orthogonal")
    for model in (before, after):
        assert isinstance(model, PyroModule)
        assert_feasible(model)


def test_checkpoints_and_copies(tmp_path):
    model = made()
    infer(model)
    twin = copy.deepcopy(model)
    same(model, twin)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    other = made()
    other.load_state_dict(torch.load(tmp_path / "model.pt"))
    same(model, other)


def test_the_store_holds_what_is_trained(tmp_path):
    model = made()
    infer(model)
    assert any("original" in name for name in pyro.get_param_store())
    pyro.get_param_store().save(tmp_path / "store.pt")
    expected = values(model)
    infer(model)
    pyro.get_param_store().load(tmp_path / "store.pt")
    pyro.module("", model, update_module_params=True)
    assert_feasible(model)
    assert expected.keys() == values(model).keys()


def test_a_prior_beside_a_constraint():
    model = made()
    model.body.bias = PyroSample(dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    with trains(model):
        infer(model)


def test_eval_and_predictive():
    model = made()
    infer(model)
    x, _ = data()
    model.eval()
    samples = pyro.infer.Predictive(model, num_samples=5)(x)["y"]
    assert samples.shape == (5, 32, 3)


CONSTRAINED = {
    "positive": (theirs.positive, (3,)),
    "softplus_positive": (theirs.softplus_positive, (3,)),
    "softplus_lower_cholesky": (theirs.softplus_lower_cholesky, (3, 3)),
    "simplex": (theirs.simplex, (4,)),
    "sphere": (theirs.sphere, (4,)),
    "ordered_vector": (theirs.ordered_vector, (4,)),
    "positive_ordered_vector": (theirs.positive_ordered_vector, (4,)),
    "corr_matrix": (theirs.corr_matrix, (3, 3)),
    "corr_cholesky": (theirs.corr_cholesky, (3, 3)),
    "unit_interval": (theirs.unit_interval, (3,)),
    "cat": (theirs.cat([theirs.positive, theirs.real], lengths=[1, 3]), (4,)),
    "stack": (theirs.stack([theirs.positive, theirs.real]), (2,)),
    "independent": (theirs.independent(theirs.softplus_positive, 1), (3,)),
}


@pytest.mark.parametrize("name", CONSTRAINED)
def test_pyros_constraints(name):
    constraint, shape = CONSTRAINED[name]
    module = nn.Module()
    # Ours may have ties where theirs are strictly ordered: so it starts with none.
    start = torch.rand(shape).sort().values if "ordered" in name else torch.randn(shape)
    module.p = nn.Parameter(start)
    constrain(module, "p", constraint)
    assert constraint.check(module.p).all()
    with trains(module):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
        (module.p - torch.randn(shape)).square().sum().backward()
        optimizer.step()
    assert constraint.check(module.p).all()


def test_a_constraint_of_pyro_without_a_counterpart():
    layer = nn.Linear(3, 3)
    with pytest.raises(ValueError, match=r"'weight': .*UnitLowerCholesky.* no counterpart"):
        constrain(layer, "weight", theirs.unit_lower_cholesky)


def test_a_constrained_pyro_module_of_a_layer_pickles():
    module = PyroModule[nn.Linear](3, 3)
    constrain(module, "weight", "orthogonal")
    copied = pickle.loads(pickle.dumps(module))
    assert isinstance(copied, PyroModule) and torch.equal(copied.weight, module.weight)
    assert spec(copied) == spec(module)


class Scaled(PyroModule):
    def __init__(self):
        super().__init__()
        self.w = PyroParam(torch.full((3, 3), 0.5), constraint=theirs.positive)

    @PyroParam(constraint=theirs.positive)
    def v(self):
        return torch.full((3,), 0.5)


TARGETS = ["w_unconstrained", "v_unconstrained", "m.w_unconstrained"]


@pytest.mark.parametrize(
    ("how", "target"),
    [(constrain, target) for target in (*TARGETS, "**")]
    + [(parametrize.register_parametrization, target) for target in TARGETS],
)
def test_a_parameter_with_a_constraint_of_pyros_is_refused(how, target):
    inner = Scaled()
    before = inner.w.detach().clone(), inner.v.detach().clone()
    model = nn.ModuleDict({"m": inner}) if target.startswith("m") else inner
    names = [name for name, _ in model.named_parameters()]
    constraint = "interval(-2, 2)" if how is constrain else nn.Identity()
    with pytest.raises(ValueError) as told:
        how(model, target, constraint)
    assert re.search(r"'\w+_unconstrained'.* PyroParam .*nn.Parameter", str(told.value))
    assert [name for name, _ in model.named_parameters()] == names
    assert torch.equal(inner.w, before[0])
    assert torch.equal(inner.v, before[1])


def test_an_nn_parameter_in_its_place_is_constrained():
    inner = Scaled()
    del inner.w
    inner.w = nn.Parameter(torch.full((3, 3), 0.5))
    constrain(inner, "w", "positive")
    with trains(inner):
        inner.w.square().sum().backward()
        torch.optim.SGD(inner.parameters(), lr=0.1).step()


class Mixture(PyroModule):
    """Two clusters of numbers, whose weights, places and widths are to be found."""

    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([0.5, 0.5]))
        self.places = nn.Parameter(torch.tensor([-1.0, 1.0]))
        self.widths = nn.Parameter(torch.ones(2))

    def forward(self, x):
        clusters = dist.Normal(self.places, self.widths)
        mixture = dist.MixtureSameFamily(dist.Categorical(self.weights), clusters)
        with pyro.plate("data", len(x)):
            return pyro.sample("x", mixture, obs=x)


MIXTURE = {"weights": "simplex", "places": "ordered", "widths": {"name": "at_least", "bound": 0.05}}


def test_the_parameters_of_a_mixture_are_found(tmp_path):
    x = torch.cat([torch.randn(300) * 0.3 - 2, torch.randn(100) * 0.5 + 3])
    model = constrain(Mixture(), MIXTURE)
    svi = SVI(model, lambda x: None, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    with trains(model):
        losses = [svi.step(x) for _ in range(400)]
    assert losses[-1] < 0.7 * losses[0]
    for found, true in [
        (model.weights, [0.75, 0.25]),
        (model.places, [x[:300].mean(), x[300:].mean()]),
        (model.widths, [x[:300].std(), x[300:].std()]),
    ]:
        torch.testing.assert_close(found.detach(), torch.tensor(true), rtol=0, atol=0.02)
    save(model, tmp_path)
    same(load(tmp_path, Mixture()), model)


class Guide(PyroModule):
    """A guide by hand: a Gaussian with a full covariance."""

    def __init__(self):
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(2))
        self.covariance = nn.Parameter(torch.eye(2))

    def forward(self, *_):
        normal = dist.MultivariateNormal(self.mean, self.covariance)
        return pyro.sample("slopes", normal)


def test_the_covariance_of_a_guide_is_the_posteriors():
    inputs = torch.randn(20, 2) @ torch.tensor([[1.0, 0.8], [0.0, 0.6]])
    outputs = inputs @ torch.tensor([1.0, -0.5]) + 0.5 * torch.randn(20)

    def model():
        slopes = pyro.sample("slopes", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", 20):
            pyro.sample("y", dist.Normal(inputs @ slopes, 0.5), obs=outputs)

    guide = constrain(Guide(), "covariance", "positive_definite")
    elbo = TraceMeanField_ELBO(num_particles=16)
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.98}), elbo)
    with trains(guide):
        for _ in range(200):
            svi.step()
    # The posterior of a linear model is known.
    expected = torch.linalg.inv(torch.eye(2) + inputs.T @ inputs / 0.25)
    mean = expected @ inputs.T @ outputs / 0.25
    torch.testing.assert_close(guide.mean.detach(), mean, rtol=0, atol=0.02)
    torch.testing.assert_close(guide.covariance.detach(), expected, rtol=0.15, atol=0.003)


def test_what_is_wrong_is_told_in_a_sentence():
    wrong = {"weights": "simplx", "place": "ordered", "widths": {"name": "at_least", "bond": 1}}
    with pytest.raises(ValueError, match="Mixture cannot be constrained") as told:
        constrain(Mixture(), wrong)
    text = str(told.value)
    assert text.count("Did you mean") == 3
    assert all(f"'{guess}'" in text for guess in ("simplex", "places", "bound"))
