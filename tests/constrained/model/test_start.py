"""Where training starts: entries move away from where the map is flat, or a warning names them."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import constrained
from constrained import constrain, report, testing

torch.set_num_threads(1)

OPTIMIZERS = {
    "sgd": lambda parameters, rate: torch.optim.SGD(parameters, lr=rate),
    "adam": lambda parameters, rate: torch.optim.Adam(parameters, lr=rate),
}
DTYPES = (torch.float32, torch.float64)
SEEDS = range(2)


def train(model, loss, optimizer, steps):
    """Train with a learning rate that falls to zero; the last loss, the largest of a batch."""
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model).sum().backward()
        optimizer.step()
        schedule.step()
    return float(loss(model).detach().amax())


def layer(*shape, seed=0, dtype=torch.float32):
    """A default linear layer without bias."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(shape[1], shape[0], bias=False, dtype=dtype)


def batch(*shape, dtype):
    """The default weights of all seeds as one: elements know nothing of each other."""
    module = nn.Module()
    weights = [layer(*shape, seed=seed, dtype=dtype).weight.detach() for seed in SEEDS]
    module.weight = nn.Parameter(torch.stack(weights))
    return module


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_negative_weights_under_positive_reach_one(kind, dtype):
    module = layer(1, 4, dtype=dtype)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[-0.3, 0.3, -0.1, 0.0]]))
    constrain(module, "weight", "positive")
    optimizer = OPTIMIZERS[kind](module.parameters(), 0.1)
    steps = {"sgd": 1000, "adam": 500}[kind]
    assert train(module, lambda m: (m.weight - 1).square().sum(), optimizer, steps) < 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kind", "rate"), [("sgd", 0.3), ("adam", 0.02)])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_monotone_net_uses_its_weights(seed, kind, rate, dtype):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(1, 24), nn.Tanh(), nn.Linear(24, 1)).to(dtype)
    constrain(net, {"0.weight": "positive", "2.weight": "positive"})
    x = torch.linspace(-2, 2, 64, dtype=dtype).unsqueeze(-1)
    y = x + 0.5 * torch.sin(2 * x)
    optimizer = OPTIMIZERS[kind](net.parameters(), rate)
    assert train(net, lambda m: (m(x) - y).square().mean(), optimizer, 400) < 1e-2
    for i in (0, 2):
        assert float((net[i].weight < 1e-5).double().mean()) == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kind", "rate"), [("sgd", 3.0), ("adam", 0.05)])
def test_the_weights_of_a_mixture_become_those_of_the_data(kind, rate, dtype):
    module = batch(1, 6, dtype=dtype)
    constrain(module, "weight", "simplex")
    shares = torch.full((1, 6), 1 / 6, dtype=dtype)

    def loss(m):
        return -(shares * m.weight.log()).sum((-2, -1)) - torch.tensor(6.0).log()

    optimizer = OPTIMIZERS[kind](module.parameters(), rate)
    assert train(module, loss, optimizer, 400) < 1e-5


def divergence(W, target):
    """How far the likelihood of covariances is from the one of the target, the best."""
    best = torch.linalg.slogdet(target).logabsdet + W.shape[-1]
    distance = torch.linalg.solve(W, target).diagonal(dim1=-2, dim2=-1).sum(-1)
    return torch.linalg.slogdet(W).logabsdet + distance - best


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kind", "rate"), [("sgd", 0.01), ("adam", 0.05)])
@pytest.mark.parametrize(
    ("name", "covariance"),
    [
        ("positive_definite", lambda W: W),
        ("cholesky_factor", lambda W: W @ W.mT),
    ],
)
def test_a_gaussian_is_fitted(name, covariance, kind, rate, dtype):
    module = batch(6, 6, dtype=dtype)
    constrain(module, "weight", name)
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    root = torch.stack([torch.randn(6, 12, generator=g, dtype=torch.float64) for g in generators])
    target = (root @ root.mT / 12).to(dtype)

    def loss(m):
        return divergence(covariance(m.weight), target)

    assert torch.isfinite(loss(module)).all()
    optimizer = OPTIMIZERS[kind](module.parameters(), rate)
    steps = {"sgd": 2000, "adam": 800}[kind]
    assert train(module, loss, optimizer, steps) < 1e-3


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_factors_of_correlations_are_fitted(kind, dtype):
    module = batch(5, 5, dtype=dtype)
    constrain(module, "weight", "correlation_cholesky")
    correlation = constrained.get("correlation")()
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    target = torch.stack([correlation.sample((5, 5), generator=g, dtype=dtype) for g in generators])

    def loss(m):
        return divergence(m.weight @ m.weight.mT, target)

    optimizer = OPTIMIZERS[kind](module.parameters(), {"sgd": 0.02, "adam": 0.05}[kind])
    assert train(module, loss, optimizer, 640) < 1e-3


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sign", [1, -1])
def test_a_determinant_of_the_wrong_sign_is_reflected(sign, dtype):
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(8, 8, generator=generator, dtype=dtype)
    W[0] *= -sign * torch.linalg.det(W).sign()
    module = nn.Linear(8, 8, dtype=dtype)
    with torch.no_grad():
        module.weight.copy_(W)
    constrain(module, "weight", f"invertible(sign={sign})")
    found = torch.linalg.svdvals(module.weight)
    torch.testing.assert_close(found, torch.linalg.svdvals(W))
    assert torch.linalg.det(module.weight).sign() == sign

    def loss(m):
        return m.weight.square().sum() / 2 - torch.linalg.slogdet(m.weight).logabsdet

    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    assert train(module, loss, optimizer, 1000) < 4 + 1e-3


def test_the_law_sees_a_start_that_is_nearly_singular():
    class Clipped(constrained.get("invertible")):
        def admit(self, value, share):
            return self.project(value)

    constraint = Clipped(sign=1)
    with pytest.raises(AssertionError, match="expected a condition of at most"):
        testing.check(constraint, event=(5, 5), laws=[testing.every_start_trains])


def test_a_nearly_symmetric_covariance_keeps_its_small_eigenvalues():
    generator = torch.Generator().manual_seed(0)
    Q = torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=torch.float64)).Q
    sizes = torch.tensor([3.0, 2.0, 1.0, 0.1, 0.01], dtype=torch.float64)
    W = (Q * sizes) @ Q.mT
    module = layer(5, 5, dtype=torch.float64)
    with torch.no_grad():
        module.weight.copy_(W + 1e-5 * torch.randn(5, 5, generator=generator, dtype=torch.float64))
    constrain(module, "weight", "positive_definite")
    found = torch.linalg.eigvalsh(module.weight.detach()).flip(0)
    torch.testing.assert_close(found, sizes, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("spec", "value"),
    [
        ("positive", -1.0),
        ("greater_than(bound=-20)", -1e4),
        ("less_than(bound=-20)", 1e4),
        ("interval(low=-3, high=-1)", 0.0),
        ("simplex", -1.0),
        ("cholesky_factor", 0.0),
    ],
)
def test_half_precision_tells_the_start_from_the_boundary(spec, value, dtype):
    module = layer(4, 4, dtype=dtype)
    with torch.no_grad():
        module.weight.fill_(value)
    constrain(module, "weight", spec)
    with torch.no_grad():
        original = module.parametrizations.weight.original.float()
    constraint = module.parametrizations.weight[0]
    original.requires_grad_()
    weight = torch.linspace(1, 2, 16).reshape(4, 4)
    (gradient,) = torch.autograd.grad((constraint(original) * weight).sum(), original)
    moving = gradient.diagonal() if spec == "cholesky_factor" else gradient
    assert bool((moving.abs() > 1e-4).all())


def test_writes_start_where_they_can_be_trained():
    module = constrain(layer(8, 8), "weight", "positive")
    module.reset_parameters()
    assert float(module.weight.detach().min()) > 0
    constraint = constrained.get("positive")()
    assert bool((module.weight >= 0.02).any())
    assert not bool(constraint.flat(module.weight, share=1e-6).any())


def test_a_member_next_to_the_boundary_is_told_of_once():
    model = nn.Sequential(layer(4, 4), layer(3, 3))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(4))
        model[1].weight.copy_(torch.eye(3))
    with pytest.warns(UserWarning) as caught:
        constrain(model, "*.weight", "row_stochastic")
    (warning,) = caught
    assert str(warning.message) == (
        "'0.weight': 1 of 1 elements (and some of 1 more tensors) stay next to the boundary of "
        "row_stochastic(), where the derivative of its map vanishes: an optimizer will hardly move "
        "them. init='inside' starts them where they can be trained."
    )
    assert warning.filename == __file__
    torch.testing.assert_close(model[0].weight.detach(), torch.eye(4))
    assert [row.flat for row in report(model).rows] == [1.0, 1.0]
    text = str(report(model))
    assert "at bound" in text and "flat" in text and text.count("100%") == 4


def test_init_inside_moves_what_keep_leaves():
    module = layer(4, 4)
    with torch.no_grad():
        module.weight.copy_(torch.eye(4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        constrain(module, "weight", "row_stochastic", init="inside")
    assert report(module).rows[0].flat == 0
    weight = module.weight.detach()
    assert float(weight.min()) > 0.004
    assert float(weight.diagonal().min()) > 0.9


def test_what_trains_at_the_boundary_is_not_told_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("nonnegative", "psd_low_rank(rank=2)", "low_rank(rank=2)", "ordered"):
            module = layer(4, 4)
            with torch.no_grad():
                module.weight.zero_()
            constrain(module, "weight", name)
            assert report(module).rows[0].flat == 0


def test_views_and_products_count_the_elements_that_are_seen():
    module = layer(4, 4)
    with torch.no_grad():
        module.weight.copy_(torch.eye(4))
    with pytest.warns(UserWarning, match="'weight': 4 of 4 elements stay"):
        constrain(module, "weight", "simplex", view="o i -> i o")
    constrained.release(module)
    product = {"name": "product", "parts": ["simplex", "sphere"], "sizes": [2, 2], "dim": 0}
    with pytest.warns(UserWarning, match="'weight': 2 of 4 elements stay"):
        constrain(module, "weight", product)


def test_a_report_survives_what_is_not_finite():
    module = constrain(layer(4, 4), "weight", "positive_definite")
    with torch.no_grad():
        module.parametrizations.weight.original.fill_(torch.nan)
    assert report(module).rows[0].flat == 0
