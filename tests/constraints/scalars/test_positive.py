"""Softplus and its inverse, positive and nonnegative numbers: precision, zero, derivatives."""

import mpmath
import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.distributions import constraint_registry, constraints

import constrained
from constrained import constrain
from constraints import Nonnegative, Positive
from constraints.math.rounding import least_positive
from constraints.math.softplus import inverse_softplus, softplus

DTYPES = [torch.float32, torch.float64]
SCALES = [0.0, 1e-30, 1e-3, 1.0, 10.0, 1e3, 1e6]


def exact_softplus(y):
    with mpmath.workdps(50):
        return mpmath.log1p(mpmath.exp(mpmath.mpf(float(y))))


@pytest.mark.parametrize("dtype", DTYPES)
def test_softplus_is_exact_to_the_last_place(dtype):
    y = torch.cat([torch.linspace(-80, 80, 321), torch.logspace(-6, 2, 50)]).to(dtype)
    eps = torch.finfo(dtype).eps
    for argument, value in zip(y, softplus(y), strict=True):
        expected = exact_softplus(argument)
        assert abs(mpmath.mpf(float(value)) - expected) <= 1.5 * eps * expected


@pytest.mark.parametrize("dtype", DTYPES)
def test_softplus_has_three_finite_derivatives_everywhere(dtype):
    y = torch.tensor([0.0, 1e-30, 1.0, 30.0, 100.0, 1e3, 1e6], dtype=dtype)
    y = torch.cat([-y, y]).requires_grad_()
    derivative = softplus(y)
    for _ in range(3):
        (derivative,) = torch.autograd.grad(derivative.sum(), y, create_graph=True)
        assert torch.isfinite(derivative).all()
    slope = torch.autograd.functional.jacobian(lambda z: softplus(z).sum(), y)
    torch.testing.assert_close(slope, torch.sigmoid(y.detach()))


def test_logaddexp_has_no_second_derivative_far_out():
    # Why `softplus` is not written that way. When this fails, either spelling will do.
    y = torch.tensor(-200.0, requires_grad=True)
    (slope,) = torch.autograd.grad(torch.logaddexp(y, y.new_zeros(())), y, create_graph=True)
    assert torch.isnan(torch.autograd.grad(slope, y)[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_inverse_softplus_over_the_whole_range(dtype):
    x = torch.logspace(-37, 30, 500, dtype=dtype)
    y = inverse_softplus(x)
    # The coordinate of a small x is log(x), known to half a unit in its last place.
    resolution = torch.finfo(dtype).eps * (2 + y.clamp(max=0).abs())
    assert ((softplus(y) - x).abs() <= resolution * x).all()
    assert torch.equal(y[x > 40], x[x > 40])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", SCALES)
def test_positive_is_positive_with_a_finite_gradient(dtype, scale):
    y = (scale * torch.randn(1000, dtype=dtype)).requires_grad_()
    value = Positive()(y)
    (gradient,) = torch.autograd.grad(value.sum(), y)
    assert (value > 0).all()
    assert torch.isfinite(value).all()
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_positive_keeps_numbers_of_every_size(dtype):
    x = torch.tensor([least_positive(dtype), 2e-19, 1e-6, 0.5, 1.0, 20.0, 1e6, 1e30], dtype=dtype)
    positive = Positive()
    y = positive.right_inverse(x)
    resolution = torch.finfo(dtype).eps * (2 + y.clamp(max=0).abs())
    assert ((positive(y) - x).abs() <= resolution * x).all()


def test_positive_takes_a_zero_for_eps_and_can_leave_it():
    positive = Positive()
    start = positive.right_inverse(torch.zeros(3))
    eps = torch.finfo(torch.float32).eps
    torch.testing.assert_close(positive(start), torch.full((3,), eps), rtol=1e-5, atol=0)
    y = start.requires_grad_()
    optimizer = torch.optim.Adam([y], lr=0.3)
    for _ in range(300):
        optimizer.zero_grad()
        (positive(y) - 2).square().sum().backward()
        optimizer.step()
    torch.testing.assert_close(positive(y.detach()), torch.full((3,), 2.0), rtol=1e-2, atol=0)


def test_positive_projects_outsiders_only():
    x = torch.tensor([-1.0, 0.0, 1e-40, 1e-9, 3.0])
    eps = torch.finfo(torch.float32).eps
    expected = torch.tensor([eps, eps, 1e-40, 1e-9, 3.0])
    assert torch.equal(Positive().project(x), expected)


def test_positive_agrees_with_torch_distributions():
    y = torch.linspace(-15, 15, 31, dtype=torch.float64)
    torch.testing.assert_close(Positive()(y), torch.nn.Softplus()(y))
    value = Positive()(y)
    assert constraints.positive.check(value).all()
    exp = constraint_registry.transform_to(constraints.positive)
    assert torch.isinf(exp.inv(torch.zeros(1))).all()  # where this one stays finite
    assert torch.isfinite(Positive().right_inverse(torch.zeros(1))).all()


@pytest.mark.parametrize("constraint", [Positive(), Nonnegative()], ids=str)
def test_negative_numbers_are_refused(constraint):
    x = torch.tensor([1.0, -1e-30])
    assert constraint.contains(x).tolist() == [True, False]
    assert constraint.violation(torch.tensor([-2.0, 0.0, 2.0])).tolist() == [2.0, 0.0, 0.0]
    with pytest.raises(constrained.InfeasibleError) as error:
        constraint.right_inverse(x)
    assert str(error.value).startswith(
        f"{constraint.name}(): the value violates the constraint by 1e-30 at index (1,) (at most "
    )


def test_nonnegative_is_onto_with_a_live_gradient_at_zero():
    nonnegative = Nonnegative()
    x = torch.tensor([0.0, 1e-38, 1.0, 1e30])
    assert torch.equal(nonnegative(nonnegative.right_inverse(x)), x)
    y = torch.tensor([-2.0, 0.0, 3.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(nonnegative(y).sum(), y)
    assert gradient.tolist() == [-(2.0**-20), 1.0, 1.0]
    assert nonnegative.canonical(y)[0].tolist() == [2.0**-19, 0.0, 3.0]
    assert nonnegative.project(torch.tensor([-2.0, 0.0, 3.0])).tolist() == [0.0, 0.0, 3.0]


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_nonnegative_leaves_zero_and_comes_back(optimizer):
    nonnegative = Nonnegative()
    y = nonnegative.right_inverse(torch.zeros(1)).clone().requires_grad_()
    for target in (1.5, -1.0):
        steps = optimizer([y], lr=0.05)
        for _ in range(200):
            steps.zero_grad()
            (nonnegative(y) - target).square().sum().backward()
            steps.step()
            y.data = nonnegative.canonical(y.data)[0]
        assert abs(float(nonnegative(y.detach())) - max(target, 0)) <= 0.11


def test_derivatives():
    y = torch.tensor([-5.0, -0.3, 0.0, 0.4, 6.0], dtype=torch.float64, requires_grad=True)
    assert gradcheck(Positive(), y, check_forward_ad=True)
    assert gradgradcheck(Positive(), y)
    away = torch.tensor([-5.0, 0.4], dtype=torch.float64, requires_grad=True)
    assert gradcheck(Nonnegative(), away, check_forward_ad=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, *DTYPES])
@pytest.mark.parametrize("constraint", [Positive(), Nonnegative()], ids=str)
def test_samples(constraint, dtype):
    generator = torch.Generator().manual_seed(1)
    x = constraint.sample((4, 500), generator=generator, dtype=dtype)
    assert x.dtype == dtype
    assert constraint.contains(x).all()
    typical = {"positive": 1.0, "nonnegative": 0.674}[constraint.name]  # the medians
    assert abs(float(x.float().median()) - typical) < 0.15


def test_names():
    assert constrained.get("non_neg").name == "nonnegative"
    assert Positive().spec() == {"name": "positive"}


@pytest.mark.parametrize(
    "constraint",
    [
        "positive",
        "negative",
        "greater_than(bound=0)",
        "less_than(bound=0)",
        "interval(low=0, high=1)",
        "interval(low=-1, high=0)",
        "cholesky_factor",
        "correlation_cholesky",
    ],
)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16])
def test_far_out_a_likelihood_has_a_gradient(constraint, dtype):
    log_normal = torch.distributions.LogNormal(torch.zeros((), dtype=dtype), 1.0)
    layer = nn.Linear(2, 2, dtype=dtype)
    constrain(layer, "weight", constraint)
    (original,) = layer.parametrizations.weight.parameters()
    for raw in (-1e4, -100.0, -50.0, -44.0, 44.0, 50.0, 100.0, 1e4):
        with torch.no_grad():
            original.fill_(raw)
        for function in (torch.log, torch.reciprocal, torch.rsqrt, log_normal.log_prob):
            value = function(layer.weight.diagonal().abs()).sum()
            (gradient,) = torch.autograd.grad(value, original)
            assert torch.isfinite(value)
            assert torch.isfinite(gradient).all(), (raw, function)


OPEN = {
    "positive": 0.0,
    "negative": 0.0,
    "greater_than(bound=1)": 1.0,
    "less_than(bound=-0.3)": -0.3,
    "interval(low=-20, high=1e-3)": (-20.0, 1e-3),
    "cholesky_factor": 0.0,
    "correlation_cholesky": 0.0,
    "positive | max_norm(bound=100)": 0.0,
}


@pytest.mark.parametrize("spec", OPEN)
@pytest.mark.parametrize("view", [None, "o i -> i o"])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16, torch.float16])
def test_rounding_does_not_end_at_the_bound(spec, view, dtype):
    layer = constrain(nn.Linear(2, 2, dtype=dtype), "weight", spec, view=view)
    (original,) = layer.parametrizations.weight.parameters()
    for raw in (-1e4, -20.0, -10.0, 10.0, 20.0, 1e4):
        with torch.no_grad():
            original.fill_(raw)
        numbers = layer.weight.diagonal()
        for bound in torch.tensor(OPEN[spec]).double().reshape(-1):
            assert (numbers.double() != bound).all(), raw
        if OPEN[spec] == 0:
            (gradient,) = torch.autograd.grad(numbers.abs().log().sum(), original)
            assert torch.isfinite(gradient).all()


def test_the_parts_of_a_product_keep_their_bounds():
    parts = {"name": "product", "parts": ["positive", "less_than(bound=1)"], "dim": 0}
    layer = constrain(nn.Linear(2, 2, dtype=torch.float16), "weight", parts)
    with torch.no_grad():
        for original, raw in zip(
            layer.parametrizations.weight.parameters(), (-90, 90), strict=True
        ):
            original.fill_(raw)
    assert (layer.weight[0] > 0).all()
    assert (layer.weight[1] < 1).all()
