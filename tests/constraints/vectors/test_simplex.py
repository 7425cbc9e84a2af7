"""The simplex: sums, vertices, the projection and its optimality conditions."""

import numpy as np
import pytest
import scipy.optimize
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.distributions import constraint_registry, constraints

import constrained
from constraints import Simplex

DTYPES = [torch.float32, torch.float64]
simplex = Simplex()


def test_values():
    y = torch.tensor([0.0, 2.0, 3.0]).log().clamp(min=-200)
    torch.testing.assert_close(simplex(y), torch.tensor([0.0, 0.4, 0.6]))
    assert torch.equal(simplex(torch.zeros(1)), torch.ones(1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 2, 7, 1000, 20_000])
def test_sums_are_one(dtype, n):
    for scale in (0.0, 1e-30, 1e-3, 1.0, 10.0, 1e3, 1e6):
        y = (scale * torch.randn(3, n, dtype=dtype)).requires_grad_()
        value = simplex(y)
        (gradient,) = torch.autograd.grad(value[:, 0].sum(), y)
        assert (value >= 0).all()
        assert (value.double().sum(-1) - 1).abs().max() <= 8 * torch.finfo(dtype).eps
        assert simplex.contains(value).all()
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 2, 7, 1000])
def test_round_trip(dtype, n):
    x = simplex.sample((5, n), dtype=dtype)
    eps = torch.finfo(dtype).eps
    assert ((simplex(simplex.right_inverse(x)) - x).abs() <= 40 * eps * x).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_have_finite_coordinates_and_move_nothing_else(dtype):
    eps = torch.finfo(dtype).eps
    for n in (2, 10, 1000):
        for ones in (1, n // 2):
            x = torch.zeros(n, dtype=dtype)
            x[:ones] = 1 / ones
            y = simplex.right_inverse(x)
            assert torch.isfinite(y).all()
            assert (simplex(y) - x).abs().max() <= 2 * eps
    # Small is not zero.
    tiny = torch.tensor([1.0, 1e-30, 0.0], dtype=dtype)
    assert float(simplex(simplex.right_inverse(tiny))[1]) == pytest.approx(1e-30, rel=1e-4)


def test_a_vertex_can_be_left():
    y = simplex.right_inverse(torch.tensor([1.0, 0.0, 0.0])).requires_grad_()
    target = torch.tensor([0.0, 0.5, 0.5])
    optimizer = torch.optim.Adam([y], lr=0.3)
    for _ in range(300):
        optimizer.zero_grad()
        (simplex(y) - target).square().sum().backward()
        optimizer.step()
    torch.testing.assert_close(simplex(y.detach()), target, rtol=0, atol=1e-2)


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        ([2.0, 1.5, -1.0], [0.75, 0.25, 0.0]),
        ([0.2, 0.3, 0.5], [0.2, 0.3, 0.5]),
        ([0.0, 0.0], [0.5, 0.5]),
        ([-5.0, -5.0], [0.5, 0.5]),
        ([1e30, 0.0], [1.0, 0.0]),
        ([-1e30, 1e30], [0.0, 1.0]),
        ([1e8, 1e8], [0.5, 0.5]),
        ([-3.0], [1.0]),
    ],
)
def test_projection_of_known_points(x, expected):
    torch.testing.assert_close(simplex.project(torch.tensor(x)), torch.tensor(expected))


@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
def test_projection_is_the_nearest_point(scale):
    x = scale * torch.randn(6, dtype=torch.float64)
    found = scipy.optimize.minimize(
        lambda p: np.sum((p - x.numpy()) ** 2),
        np.full(6, 1 / 6),
        jac=lambda p: 2 * (p - x.numpy()),
        bounds=[(0, 1)] * 6,
        constraints={"type": "eq", "fun": lambda p: p.sum() - 1, "jac": np.ones_like},
        options={"ftol": 1e-14, "maxiter": 1000},
    )
    assert found.success
    nearest = torch.from_numpy(found.x)
    torch.testing.assert_close(simplex.project(x), nearest, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3, 1e6])
def test_projection_satisfies_the_optimality_conditions(dtype, scale):
    x = scale * torch.randn(20, 300, dtype=dtype)
    p = simplex.project(x)
    assert simplex.contains(p).all()
    torch.testing.assert_close(simplex.project(p), p)
    # x - p is a constant t on the support of p, and at most t elsewhere.
    step, support = (x - p).double(), p > 0
    threshold = torch.where(support, step, torch.inf).amin(-1, keepdim=True)
    rounding = 20 * torch.finfo(dtype).eps * (1 + x.abs().max())
    assert (torch.where(support, step - threshold, 0) <= rounding).all()
    assert (step <= threshold + rounding).all()


def test_violation():
    assert simplex.violation(torch.tensor([1.2, -0.2])) == pytest.approx(0.2)
    assert simplex.violation(torch.tensor([0.5, 1.0])) == pytest.approx(0.5)
    assert simplex.violation(torch.zeros(4)) == pytest.approx(0.25)
    assert simplex.violation(torch.tensor([0.25, 0.25, 0.5])) == 0
    with pytest.raises(constrained.InfeasibleError, match=r"violates the constraint by 0\.5 "):
        simplex.right_inverse(torch.tensor([0.5, 1.0]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n", [3, 100, 3000])
def test_rounding_to_half_precision_leaves_members(dtype, n):
    # All entries of the uniform vector are rounded in the same direction.
    assert simplex.contains(torch.full((n,), 1 / n).to(dtype))
    assert simplex.contains(simplex.sample((20, n), dtype=dtype)).all()


def test_agrees_with_torch_distributions():
    y = torch.randn(5, 4, dtype=torch.float64)
    transform = constraint_registry.transform_to(constraints.simplex)
    torch.testing.assert_close(simplex(y), transform(y))
    assert constraints.simplex.check(simplex(y)).all()


def test_derivatives():
    for y in (torch.randn(2, 4), torch.zeros(3), torch.tensor([-50.0, 0.0, 50.0])):
        y = y.double().requires_grad_()
        assert gradcheck(simplex, y, check_forward_ad=True)
        assert gradgradcheck(simplex, y)


def test_samples_are_uniform():
    x = simplex.sample((20_000, 4), generator=torch.Generator().manual_seed(2))
    # Dirichlet(1, 1, 1, 1): mean 1/4, variance 3/80.
    torch.testing.assert_close(x.mean(0), torch.full((4,), 0.25), rtol=0.02, atol=0)
    torch.testing.assert_close(x.var(0), torch.full((4,), 3 / 80), rtol=0.05, atol=0)


def test_shapes():
    with pytest.raises(ValueError, match=r"simplex\(\): each element must have at least one entry"):
        simplex.check_shape((3, 0))
    with pytest.raises(ValueError, match="at least one dimension"):
        simplex.check_shape(())
    assert constrained.get("probability_simplex").name == "simplex"
