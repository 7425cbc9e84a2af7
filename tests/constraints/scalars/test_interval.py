"""Numbers in an interval: strictly inside, round trips next to the bounds, derivatives."""

import pytest
import scipy.special
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.distributions import constraint_registry, constraints

import constrained
from constraints import Interval

DTYPES = [torch.float32, torch.float64]
BOUNDS = [(0, 1), (-1, 1), (-3, -1), (1e-3, 1e3), (-1e6, 1e6), (0, 1e-6), (1e6, 1e6 + 1)]


def test_values():
    interval = Interval(-1.0, 3.0)
    y = torch.tensor([-2.0, 0.0, 2.0], dtype=torch.float64)
    expected = -1 + 4 * torch.from_numpy(scipy.special.expit(y.numpy()))
    torch.testing.assert_close(interval(y), expected)
    torch.testing.assert_close(interval.right_inverse(expected), y)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-3, 1.0, 10.0, 1e3, 1e6])
def test_values_lie_strictly_inside(dtype, bounds, scale):
    y = (scale * torch.randn(1000, dtype=dtype)).requires_grad_()
    value = Interval(*bounds)(y)
    (gradient,) = torch.autograd.grad(value.sum(), y)
    assert ((value.double() > bounds[0]) & (value.double() < bounds[1])).all()
    assert torch.isfinite(gradient).all()
    assert (gradient >= 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_clamped_value_keeps_its_gradient(dtype):
    # At 40, sigmoid rounds to 1 in both dtypes.
    y = torch.tensor(40.0, dtype=dtype, requires_grad=True)
    (gradient,) = torch.autograd.grad(Interval(0.0, 1.0)(y), y)
    torch.testing.assert_close(float(gradient), float(torch.tensor(-40.0).exp()), rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
def test_round_trip(dtype, bounds):
    interval = Interval(*bounds)
    x = interval.sample((5000,), dtype=dtype)
    assert interval.contains(x).all()
    error = (interval(interval.right_inverse(x)) - x).abs().max()
    assert error <= 2 * torch.finfo(dtype).eps * max(map(abs, bounds))


@pytest.mark.parametrize("dtype", DTYPES)
def test_round_trip_next_to_a_bound_at_zero(dtype):
    # Both ends, not only the lower one, are measured from the bound.
    distance = torch.logspace(-18, -1, 100, dtype=dtype)
    for interval, x in ((Interval(0.0, 1.0), distance), (Interval(-1.0, 0.0), -distance)):
        y = interval.right_inverse(x)
        resolution = torch.finfo(dtype).eps * (4 + y.abs())
        assert ((interval(y) - x).abs() <= resolution * distance).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, *DTYPES])
@pytest.mark.parametrize("bounds", [(0, 1), (-3, -1), (0.1, 0.7)], ids=str)
def test_the_bounds_give_finite_parameters(dtype, bounds):
    interval = Interval(*bounds)
    x = torch.tensor(bounds, dtype=dtype)
    y = interval.right_inverse(x)
    assert torch.isfinite(y).all()
    assert (interval(y) - x).abs().max() <= 4 * torch.finfo(dtype).eps * max(map(abs, bounds))


def test_projection_moves_outsiders_only():
    interval = Interval(-1.0, 2.0)
    x = torch.tensor([-1e3, -1.0, -0.9999999, 0.3, 1.9999999, 2.0, 7.0])
    found = interval.project(x)
    assert torch.equal(found[2:5], x[2:5])
    margin = 2 * torch.finfo(torch.float32).eps
    expected = torch.tensor([-1 + margin, -1 + margin, 2 - margin, 2 - margin])
    assert torch.equal(found[[0, 1, 5, 6]], expected)
    assert torch.equal(interval.project(found), found)


def test_violation_is_the_distance():
    found = Interval(-1.0, 2.0).violation(torch.tensor([-3.0, -1.0, 0.0, 2.0, 2.5]))
    assert found.tolist() == [2.0, 0.0, 0.0, 0.0, 0.5]
    with pytest.raises(constrained.InfeasibleError) as error:
        Interval(-1.0, 2.0).right_inverse(torch.tensor([0.0, 2.5]))
    assert str(error.value).startswith(
        "interval(low=-1.0, high=2.0): the value violates the constraint by 0.5 at index (1,)"
    )


def test_a_too_narrow_interval_is_not_left():
    # No single-precision number lies strictly between these bounds.
    interval = Interval(1.0, 1.0 + 2**-23)
    value = interval(torch.linspace(-1e3, 1e3, 11))
    assert ((value >= interval.low) & (value <= interval.high)).all()


def test_agrees_with_torch_distributions():
    y = torch.linspace(-8, 8, 33, dtype=torch.float64)
    transform = constraint_registry.transform_to(constraints.interval(-2.0, 5.0))
    torch.testing.assert_close(Interval(-2.0, 5.0)(y), transform(y))


@pytest.mark.parametrize("bounds", [(0, 1), (-3, -1)], ids=str)
def test_derivatives(bounds):
    y = torch.tensor([-5.0, -0.3, 0.0, 0.4, 6.0], dtype=torch.float64, requires_grad=True)
    assert gradcheck(Interval(*bounds), y, check_forward_ad=True)
    assert gradgradcheck(Interval(*bounds), y)


@pytest.mark.parametrize(
    ("low", "high", "kind", "message"),
    [
        (1.0, 1.0, ValueError, "low must be less than high, and both finite, got low=1.0 and"),
        (2, 1, ValueError, "low must be less than high, and both finite, got low=2 and high=1."),
        (0.0, float("inf"), ValueError, "both finite, got low=0.0 and high=inf."),
        (float("nan"), 1.0, ValueError, "both finite, got low=nan and high=1.0."),
        ("0", 1.0, TypeError, "low must be a number, got '0'."),
        (0.0, True, TypeError, "high must be a number, got True."),
    ],
)
def test_wrong_arguments(low, high, kind, message):
    with pytest.raises(kind) as error:
        Interval(low, high)
    assert str(error.value).startswith("interval: ")
    assert message in str(error.value)


def test_names():
    assert constrained.get("open_interval").name == "interval"
    assert Interval(0, 1).spec() == {"name": "interval", "low": 0.0, "high": 1.0}
    assert repr(Interval(0, 1)) == "interval(low=0.0, high=1.0)"
