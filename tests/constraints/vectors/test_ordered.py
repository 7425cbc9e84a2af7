"""Ordered vectors: isotonic projection, gaps, optima."""

import pytest
import scipy.optimize
import torch
from torch import nn

import constrained
from constraints import Ordered, PositiveOrdered
from constraints.math.isotonic import isotonic

CONSTRAINTS = [Ordered(), PositiveOrdered()]
DTYPES = [torch.float32, torch.float64]


def starts(n):
    return {
        "random": torch.randn(n, dtype=torch.float64).sort().values,
        "zeros": torch.zeros(n, dtype=torch.float64),
        "ones": torch.ones(n, dtype=torch.float64),
        "descending": torch.arange(n, 0, -1, dtype=torch.float64),
        "tied in pairs": torch.arange(n, dtype=torch.float64).div(2, rounding_mode="floor"),
    }


@pytest.mark.parametrize("n", [1, 2, 3, 17, 512])
@pytest.mark.parametrize("kind", ["normal", "walk", "ties", "descending", "sawtooth"])
def test_isotonic_is_that_of_scipy(n, kind):
    normal = torch.randn(4, n, dtype=torch.float64)
    y = {
        "normal": normal,
        "walk": normal.cumsum(-1),
        "ties": normal.round(),
        "descending": normal.abs().cumsum(-1).flip(-1),
        "sawtooth": torch.arange(n) % 7 - 0.01 * torch.arange(n) + 0 * normal,
    }[kind]
    expected = [scipy.optimize.isotonic_regression(row.numpy()).x for row in y]
    torch.testing.assert_close(isotonic(y), torch.stack([torch.tensor(x) for x in expected]))


def test_isotonic_is_the_formula_of_minima_and_maxima():
    y = torch.randn(6, dtype=torch.float64)
    expected = [
        max(min(y[a : b + 1].mean() for b in range(i, 6)) for a in range(i + 1)) for i in range(6)
    ]
    torch.testing.assert_close(isotonic(y), torch.stack(expected))


def test_isotonic_without_numbers_to_look_at():
    y = torch.randn(3, 5)
    expected = isotonic(y)
    assert torch.equal(torch.vmap(isotonic)(y), expected)
    assert torch.equal(torch.compile(isotonic, backend="aot_eager", fullgraph=True)(y), expected)
    assert isotonic(y.to("meta")).shape == y.shape
    assert isotonic(torch.empty(0, 5)).shape == (0, 5)


def test_the_nearest_positive_one_is_that_of_scipy():
    y = torch.randn(5, dtype=torch.float64)
    steps = scipy.optimize.nnls(torch.ones(5, 5).tril().double().numpy(), y.numpy())[0]
    expected = torch.tensor(steps).cumsum(0)
    torch.testing.assert_close(PositiveOrdered().project(y), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-6, 1.0, 1e6, 1e18])
def test_any_parameter_gives_a_member_and_a_gradient(constraint, dtype, scale):
    for n in (1, 512):
        y = (scale * torch.randn(3, n, dtype=dtype)).requires_grad_()
        value = constraint(y)
        assert (value.diff(dim=-1) >= 0).all() and constraint.contains(value).all()
        (gradient,) = torch.autograd.grad(value.sum(), y)
        assert gradient.isfinite().all() and (gradient != 0).all()


@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_sorted_numbers_come_back(constraint, dtype):
    x = torch.randn(20, 512, dtype=dtype).abs().sort(-1).values
    for value in (x, x.round(), 1e6 * x, 1e6 + x.round(), torch.zeros_like(x)):
        back = constraint(constraint.right_inverse(value))
        assert ((back - value).abs() <= 4 * torch.finfo(dtype).eps * value.abs().amax()).all()
        assert torch.equal(constraint.project(value), value)


def test_what_rounding_left_out_of_order_does_not_add_up():
    x = torch.ones(512) - torch.arange(512) % 2 * 2**-24
    back = Ordered()(Ordered().right_inverse(x))
    assert (back - x).abs().max() <= 2**-23


def test_stan_maps_into_the_interior():
    y = torch.randn(50, 6, dtype=torch.float64)
    ordered = torch.cat([y[:, :1], y[:, 1:].exp()], -1).cumsum(-1)
    assert Ordered().contains(ordered, tol=0.0).all()
    positive = y.exp().cumsum(-1)
    assert PositiveOrdered().contains(positive, tol=0.0).all()
    assert Ordered().contains(positive).all()
    assert not PositiveOrdered().contains(positive - 2 * positive[:, :1]).any()
    # In the interior the increments are what Stan's exp makes of its coordinates.
    torch.testing.assert_close(PositiveOrdered().right_inverse(positive), y.exp())


def test_the_violation_is_the_least_change_of_one_entry():
    x = torch.tensor([3.0, 1.0, 4.0, 2.0])
    assert Ordered().violation(x) == 1
    moved = x + torch.tensor([-1.0, 1.0, -1.0, 1.0])
    assert Ordered().violation(moved) == 0
    assert PositiveOrdered().violation(x - 5) == 4
    assert Ordered().violation(x - 5) == 1


@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=str)
def test_adam_reaches_the_nearest_member_in_double(constraint):
    # Softplus for the increments stalls here: next to a tie its gradient is below Adam's epsilon.
    target = torch.tensor([0.5, -1.0, 2.0, 1.0, 1.5, 1.4], dtype=torch.float64)
    # One element of a batch knows nothing of the others, nor does Adam.
    first = starts(6)
    layer = nn.Module()
    layer.register_parameter("x", nn.Parameter(torch.stack([*first.values()])))
    constrained.constrain(layer, "x", constraint)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 600)
    for _ in range(600):
        optimizer.zero_grad()
        (layer.x - target).square().sum().backward()
        optimizer.step()
        schedule.step()
    nearest = constraint.project(target)
    apart = (layer.x.detach() - nearest).norm(dim=-1)
    assert not [k for k, a in zip(first, apart, strict=True) if a >= 1e-3 * nearest.norm()]


def test_ties_are_exact_after_training():
    layer = nn.Module()
    layer.register_parameter("x", nn.Parameter(torch.randn(4)))
    constrained.constrain(layer, "x", "ordered")
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        (layer.x - torch.tensor([3.0, 2.0, 1.0, 5.0])).square().sum().backward()
        optimizer.step()
    assert layer.x[:3].detach().diff().max() < 1e-5
    torch.testing.assert_close(layer.x.detach(), torch.tensor([2.0, 2.0, 2.0, 5.0]))


def test_out_of_order_is_refused_with_the_violation():
    with pytest.raises(constrained.InfeasibleError, match=r"ordered\(\).* by 0.5"):
        Ordered().right_inverse(torch.tensor([1.0, 0.0, 2.0]))
    with pytest.raises(ValueError, match="at least one entry"):
        Ordered().project(torch.empty(2, 0))
    assert constrained.get("ordered_vector") is Ordered


@pytest.mark.parametrize("cls", [Ordered, PositiveOrdered])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gap_keeps_entries_apart(cls, dtype):
    constraint = cls(gap=0.1)
    normal = torch.randn(20, 6, dtype=dtype)
    value = constraint.project(normal)
    assert (value.diff(dim=-1) >= 0.1 - 1e-6).all()
    assert constraint.contains(value).all()
    torch.testing.assert_close(constraint(constraint.right_inverse(value)), value)
    assert not constraint.contains(torch.ones(3, dtype=dtype))
    assert cls().contains(torch.ones(3, dtype=dtype))
    assert constrained.get(constraint.name)(**{"gap": 0.1}).spec() == constraint.spec()


def test_cutpoints_start_apart():
    # An ordinal regression: the probability of a class is a difference of neighbours.
    module = nn.Module()
    module.cutpoints = nn.Parameter(torch.zeros(4))
    constrained.constrain(module, "cutpoints", "ordered(gap=0.01)")
    classes = torch.arange(5).repeat(20)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    for _ in range(300):
        below = torch.cat([torch.zeros(1), torch.sigmoid(module.cutpoints), torch.ones(1)])
        loss = -below.diff().log()[classes].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert torch.isfinite(loss)
        assert (module.cutpoints.diff() > 0.005).all()
    probabilities = torch.sigmoid(module.cutpoints)
    torch.testing.assert_close(probabilities, torch.arange(1, 5) / 5, atol=2e-2, rtol=0)


@pytest.mark.parametrize("gap", [-1.0, torch.inf, torch.nan])
def test_gaps_that_are_none(gap):
    with pytest.raises(ValueError, match="ordered: gap must be"):
        Ordered(gap=gap)
