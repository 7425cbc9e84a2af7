"""The Poincaré ball and the hyperboloid: references, large vectors, optima."""

import math

import geoopt
import pytest
import scipy.optimize
import torch
from torch import nn

import constrained
from constraints import Lorentz, PoincareBall

DTYPES = [torch.float32, torch.float64]
CURVATURES = [0.25, 1.0, 9.0]


def normal(*shape, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype)


# ------------------------------------------------------------------------------ the Poincare ball


@pytest.mark.parametrize("curvature", CURVATURES)
def test_the_ball_is_that_of_geoopt(curvature):
    ball, theirs = PoincareBall(curvature=curvature), geoopt.PoincareBall(c=curvature).double()
    x = theirs.random_normal(50, 4, dtype=torch.float64)
    assert ball.contains(x, tol=0.0).all()
    assert theirs.check_point_on_manifold(ball(3 * normal(50, 4)))
    assert theirs.check_point_on_manifold(ball.sample((50, 4), dtype=torch.float64))
    # Theirs ends 1e-5 before the boundary.
    y = normal(50, 4) / math.sqrt(curvature)
    torch.testing.assert_close(ball(y), theirs.expmap0(y))
    # Theirs misses artanh(0.9999) by 1e-4, in double precision too.
    torch.testing.assert_close(ball.right_inverse(x), theirs.logmap0(x), rtol=1e-3, atol=1e-3)
    # Straight lines from zero become geodesics, at twice their length.
    torch.testing.assert_close(theirs.dist0(ball(y)), 2 * y.norm(dim=-1), rtol=1e-4, atol=0)
    c = math.sqrt(curvature)
    torch.testing.assert_close(torch.atanh(c * ball(y).norm(dim=-1)) / c, y.norm(dim=-1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [0.0, 1e-40, 1e-30, 1e-6, 0.03, 1.0, 10.0, 1e6, 1e30])
@pytest.mark.parametrize("curvature", [1e-6, 1.0, 1e6])
def test_any_parameter_gives_an_interior_point_and_a_gradient(dtype, scale, curvature):
    for n in (1, 5, 512):
        y = (scale * normal(3, n, dtype=dtype)).requires_grad_()
        x = PoincareBall(curvature=curvature)(y)
        assert (curvature * x.square().sum(-1) < 1).all()
        (gradient,) = torch.autograd.grad(x.sum(), y)
        assert x.isfinite().all() and gradient.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_tanh_has_no_seam(dtype):
    # Both sides of the series' end, and of the place where tanh is 1.
    t = torch.cat([torch.linspace(0.09, 0.11, 41), torch.logspace(-8, 1.3, 200)]).to(dtype)
    x = PoincareBall()(t[:, None]).squeeze(-1)
    exact = torch.tanh(t.double())
    eps = torch.finfo(dtype).eps
    assert (x.double() - exact).abs().le(4 * eps * exact + 16 * eps * (exact > 1 - 17 * eps)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_radial_derivative_keeps_its_digits_next_to_the_boundary(dtype):
    t = torch.linspace(0.01, 17, 50, dtype=dtype, requires_grad=True)
    (slope,) = torch.autograd.grad(PoincareBall()(t[:, None]).sum(), t)
    exact = 1 / torch.cosh(t.detach().double()).square()
    torch.testing.assert_close(slope.double(), exact, rtol=100 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("curvature", CURVATURES)
def test_points_next_to_the_boundary_come_back(dtype, curvature):
    ball, eps = PoincareBall(curvature=curvature), torch.finfo(dtype).eps
    direction = nn.functional.normalize(normal(1, 6, dtype=torch.float64), dim=-1)
    depth = torch.tensor([0.5, 1e-2, 1e-4, 1e-5, 32 * eps, 4 * eps, 0], dtype=torch.float64)
    x = (direction * (1 - depth[:, None]) / math.sqrt(curvature)).to(dtype)
    y = ball.right_inverse(x)
    # A point nearer than 16 roundings is put there.
    assert y.isfinite().all() and y.norm(dim=-1).max() < 20 / math.sqrt(curvature)
    assert ((ball(y) - x).norm(dim=-1) <= 20 * eps / math.sqrt(curvature)).all()
    assert ((ball(y) - x).norm(dim=-1)[:5] <= 4 * eps / math.sqrt(curvature)).all()


def test_outsiders_go_inside_along_their_direction():
    x = torch.tensor([[3.0, 4.0], [0.0, 1.0], [0.6, 0.6], [0.0, 0.0]])
    nearby = PoincareBall().project(x)
    assert (nearby.norm(dim=-1) < 1).all()
    on_the_boundary = torch.tensor([[0.6, 0.8], [0.0, 1.0]])
    torch.testing.assert_close(nearby[:2], on_the_boundary, rtol=2e-4, atol=0)
    assert torch.equal(nearby[2:], x[2:])
    assert PoincareBall().violation(x).tolist() == [4.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("target", ["inside", "outside"])
def test_adam_reaches_the_nearest_point_of_the_ball(target):
    # From every start that is not at the boundary, which is infinitely far away: the law's starts
    # lie there, whence the exemption.
    goal = {"inside": [0.3, -0.6, 0.2], "outside": [1.0, -2.0, 0.5]}[target]
    goal = torch.tensor(goal, dtype=torch.float64)
    direction = nn.functional.normalize(normal(3), dim=-1)
    starts = [torch.zeros(3), torch.ones(3) / 3, -0.5 * goal / goal.norm(), 0.99 * direction]
    starts = torch.stack([*(s.double() for s in starts), 1e-9 * direction])
    layer = nn.Module()
    layer.register_parameter("x", nn.Parameter(starts))
    constrained.constrain(layer, "x", "poincare_ball")
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 2400)
    for _ in range(2400):
        optimizer.zero_grad()
        (layer.x - goal).square().sum().backward()
        optimizer.step()
        schedule.step()
    best = (PoincareBall().project(goal) - goal).square().sum()
    gap = ((layer.x.detach() - goal).square().sum(-1) - best) / (best + 0.5)
    assert (gap < 1e-3).all()


def test_a_hyperbolic_loss_leads_away_from_the_boundary():
    layer = nn.Module()
    layer.register_parameter("x", nn.Parameter(torch.tensor([3.0, 4.0])))
    constrained.constrain(layer, "x", "poincare_ball")
    goal, theirs = torch.tensor([-0.2, 0.1]), geoopt.PoincareBall()
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    for _ in range(250):
        optimizer.zero_grad()
        theirs.dist(layer.x, goal).square().backward()
        optimizer.step()
    torch.testing.assert_close(layer.x.detach(), goal, rtol=0, atol=1e-3)


# --------------------------------------------------------------------------------- the hyperboloid


@pytest.mark.parametrize("curvature", CURVATURES)
def test_the_hyperboloid_is_that_of_geoopt(curvature):
    # geoopt's k is the square of the radius.
    ours = Lorentz(curvature=curvature)
    theirs = geoopt.Lorentz(k=torch.tensor(1 / curvature, dtype=torch.float64))
    assert ours.contains(theirs.random_normal(50, 5, dtype=torch.float64)).all()
    assert theirs.check_point_on_manifold(ours(normal(50, 4)))
    assert theirs.check_point_on_manifold(ours.sample((50, 5), dtype=torch.float64))
    tangent = nn.functional.pad(normal(50, 4), (1, 0))
    assert ours.contains(theirs.expmap0(tangent)).all()


@pytest.mark.parametrize("curvature", CURVATURES)
def test_both_models_are_one_space(curvature):
    x = Lorentz(curvature=curvature)(normal(20, 3))
    c = math.sqrt(curvature)
    ball = x[:, 1:] / (1 + c * x[:, :1])
    assert PoincareBall(curvature=curvature).contains(ball, tol=0.0).all()
    distance = 2 * PoincareBall(curvature=curvature).right_inverse(ball).norm(dim=-1)
    torch.testing.assert_close(distance, torch.acosh(c * x[:, 0]) / c)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-6, 1.0, 1e6, 1e18, 1e30])
@pytest.mark.parametrize("curvature", [1e-6, 1.0, 1e6])
def test_any_parameter_gives_a_point_of_the_hyperboloid(dtype, scale, curvature):
    for n in (1, 5, 511):
        y = (scale * normal(3, n, dtype=dtype)).requires_grad_()
        x = Lorentz(curvature=curvature)(y)
        assert Lorentz(curvature=curvature).contains(x).all()
        assert torch.equal(Lorentz(curvature=curvature).right_inverse(x), y)
        (gradient,) = torch.autograd.grad(x.sum(), y)
        assert gradient.isfinite().all()


def by_scipy(value, curvature):
    """The least squared distance of a point from the hyperboloid, over a plane through the axis."""
    radius = 1 / math.sqrt(curvature)
    a, x0 = float(value[1:].norm()), float(value[0])

    def square(s):
        return (s - a) ** 2 + (math.hypot(radius, s) - x0) ** 2

    end = a + abs(x0) + 1e-9
    # It has one minimum there.
    found = scipy.optimize.minimize_scalar(square, bounds=(0, end), options={"xatol": 1e-12 * end})
    return min(found.fun, square(0.0))


@pytest.mark.parametrize("curvature", [1e-8, 0.25, 1.0, 9.0, 1e8])
def test_the_projection_is_the_nearest_point(curvature):
    constraint = Lorentz(curvature=curvature)
    cases = torch.cat([10**k * normal(8, 4) for k in (-3, 0, 3)])
    axis = torch.zeros(8, 4, dtype=torch.float64)
    axis[:, 0] = torch.tensor([-1e3, -1.0, 0.0, 0.5, 1.0, 2.0, 2.001, 1e3])
    cases = torch.cat([cases, axis])
    nearby = constraint.project(cases)
    assert constraint.contains(nearby).all()
    for value, found in zip(cases, nearby, strict=True):
        expected = by_scipy(value, curvature)
        assert float((found - value).square().sum()) <= expected * (1 + 1e-7) + 1e-18
    torch.testing.assert_close(constraint.project(nearby), nearby)


@pytest.mark.parametrize("scale", [1e-37, 1e-20, 1e15, 1e25, 1e30, 1e37])
@pytest.mark.parametrize("curvature", [0.25, 1.0, 4.0])
def test_the_projection_at_the_ends_of_the_range(curvature, scale):
    constraint = Lorentz(curvature=curvature)
    cases = normal(32, 4).float() * scale
    found = constraint.project(cases)
    assert constraint.contains(found).all()
    expected = constraint.project(cases.double())
    lengths = torch.linalg.vector_norm(expected, dim=-1)
    assert (torch.linalg.vector_norm(found - expected, dim=-1) <= 1e-5 * lengths).all()


def test_shapes_and_arguments_are_checked():
    with pytest.raises(ValueError, match="at least two entries"):
        Lorentz().project(torch.ones(3, 1))
    with pytest.raises(ValueError, match="lorentz: curvature must be positive"):
        Lorentz(curvature=0)
    with pytest.raises(ValueError, match="poincare_ball: curvature must be positive"):
        PoincareBall(curvature=-1)
    with pytest.raises(constrained.InfeasibleError, match=r"poincare_ball\(\).* by 4"):
        PoincareBall().right_inverse(torch.tensor([3.0, 4.0]))
    # The lower sheet is not the set.
    with pytest.raises(constrained.InfeasibleError, match=r"lorentz\(\).* by 2"):
        Lorentz().right_inverse(torch.tensor([-1.0, 0.0]))
    assert Lorentz()(torch.zeros(0, 3)).shape == (0, 4)
