"""Invertible matrices and those of determinant one: distances, degenerate members, optima."""

import math

import geotorch
import pytest
import torch
from scipy.optimize import brentq, minimize
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import jacrev

from constrained import InfeasibleError, constrain
from constrained.registration.add import register_parametrization
from constraints import Invertible, Orthogonal, PositiveDefinite, SpecialLinear

DOUBLE = torch.float64
gl, positive, sl = Invertible(), Invertible(sign=1), SpecialLinear()


def with_singular_values(*values, sign=1, dtype=DOUBLE):
    n = len(values)
    U, V = (Orthogonal().sample((n, n), dtype=DOUBLE) for _ in range(2))
    if torch.det(U) * torch.det(V) * sign < 0:
        U[:, 0] *= -1
    return ((U * torch.tensor(values, dtype=DOUBLE)) @ V.mT).to(dtype)


def logdet(W):
    sign, logarithm = torch.linalg.slogdet(W.detach().double())
    assert (sign > 0).all()
    return logarithm


def trained(constraint, start, target, steps=750, rate=0.05):
    layer = nn.Module()
    layer.weight = nn.Parameter(start.clone())
    constrain(layer, "weight", constraint)
    optimizer = torch.optim.Adam(layer.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        losses = (layer.weight - target).square().sum((-2, -1))
        losses.sum().backward()
        optimizer.step()
        schedule.step()
    assert constraint.contains(layer.weight.detach()).all()
    return losses.detach()


# ---------------------------------------------------------------------------------- invertible


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("n", [1, 2, 5, 64])
@pytest.mark.parametrize("sign", [None, 1, -1])
def test_every_value_has_an_inverse(dtype, n, sign):
    constraint = Invertible(sign)
    eps = torch.finfo(dtype).eps
    for scale in (0.0, 1e-30, 1e-6, 1.0, 1e6, 1e30):
        zero_row = scale * torch.randn(n, n, dtype=dtype)
        zero_row[0] = 0
        noise = scale * torch.randn(n, n, dtype=dtype)
        for X in (noise, zero_row, torch.full_like(noise, scale), scale * torch.eye(n).to(dtype)):
            X = X.requires_grad_()
            W = constraint(X)
            s = torch.linalg.svdvals(W.detach().double())
            assert s[-1] >= eps * s[0]
            inverse, info = torch.linalg.inv_ex(W.detach())
            assert info == 0
            assert torch.isfinite(inverse).all()
            if sign:
                assert torch.linalg.slogdet(W.detach().double()).sign == sign
            (gradient,) = torch.autograd.grad(W, X, torch.randn_like(W))
            assert torch.isfinite(gradient).all()


def test_g01_the_sign_is_that_which_is_asked_for():
    # geotorch 0.4 gives a negative determinant in half of the seeds, though it promises none.
    torch.manual_seed(0)
    there = []
    for _ in range(20):
        layer = nn.Linear(5, 5)
        geotorch.invertible(layer, "weight")
        there.append(float(torch.det(layer.weight.detach())))
    assert min(there) < 0
    for seed in range(20):
        torch.manual_seed(seed)
        weight = nn.Linear(5, 5).weight.detach()
        for sign in (1, -1):
            layer = nn.Linear(5, 5)
            layer.weight.data.copy_(weight)
            constrain(layer, "weight", Invertible(sign))
            assert torch.det(layer.weight) * sign > 0
        assert torch.equal(gl(weight), weight)
        if torch.det(weight) < 0:
            with pytest.raises(InfeasibleError):
                positive.right_inverse(weight)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_invertible_matrices_come_back_bit_for_bit(dtype):
    decades = 6 if dtype == torch.float32 else 12
    graded = with_singular_values(*(10.0 ** -(decades * k / 7) for k in range(8)), dtype=dtype)
    for W in (gl.sample((3, 4, 4), dtype=dtype), torch.eye(3, dtype=dtype), graded, 1e-30 * graded):
        assert torch.equal(gl(gl.right_inverse(W)), W)
        assert torch.equal(gl.project(W), W)
    for W in (positive.sample((3, 4, 4), dtype=dtype), torch.eye(3, dtype=dtype)):
        assert torch.equal(positive(positive.right_inverse(W)), W)


def test_the_other_sign_is_reflected():
    X = with_singular_values(3.0, 2.0, 0.5, sign=-1)
    W = positive(X)
    torch.testing.assert_close(torch.linalg.svdvals(W), torch.linalg.svdvals(X))
    assert torch.det(W) == pytest.approx(3.0)
    assert float(torch.linalg.matrix_norm(W - X, 2)) == pytest.approx(1.0)
    nearest = positive.project(X)
    assert float(torch.linalg.matrix_norm(nearest - X)) == pytest.approx(0.5)
    assert float(positive.violation(X)) == pytest.approx(0.5)
    # Continuous across the boundary.
    here, there = (with_singular_values(3.0, 2.0, 1e-9), torch.zeros(3, 3))
    U, s, Vh = torch.linalg.svd(here)
    there = here - 2 * s[-1] * torch.outer(U[:, -1], Vh[-1])
    torch.testing.assert_close(positive(there), positive(here), rtol=0, atol=1e-8)


@pytest.mark.parametrize("values", [(3.0, 2.0, 0.5), (2.0, 2.0, 0.5), (1.0, 1.0, 1.0, 0.3)])
def test_derivatives_of_the_reflection(values):
    X = with_singular_values(*values, sign=-1).requires_grad_()
    assert gradcheck(positive, X)
    assert gradgradcheck(positive, X)


@pytest.mark.parametrize("constraint", [gl, positive, sl])
def test_g05_the_identity_is_a_start(constraint):
    # There the gradient at the identity is zero in all directions but the diagonal's.
    target = torch.tensor([[1.0, 0.5], [0.5, 1.25]], dtype=DOUBLE)
    jacobian = jacrev(constraint)(torch.eye(2, dtype=DOUBLE)).reshape(4, 4)
    rank = int((torch.linalg.svdvals(jacobian) > 1e-6).sum())
    assert rank == constraint.dimension((2, 2))
    assert trained(constraint, torch.eye(2, dtype=DOUBLE), target) < 1e-6


# ------------------------------------------------------------------------------ special linear


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("n", [1, 2, 5, 64])
def test_the_determinant_is_one(dtype, n):
    for scale in (0.0, 1e-6, 0.5, 1.0, 1e3, 1e6):
        for X in (scale * torch.randn(4, n, n), scale * torch.eye(n), torch.full((n, n), scale)):
            W = sl(X.to(dtype))
            condition = torch.linalg.cond(W.double())
            eps = torch.finfo(dtype).eps
            assert (logdet(W).abs() <= 10 * n * eps * condition).all()
            assert sl.contains(W).all()


def test_no_overflow_on_large_matrices():
    X = (1e6 * torch.randn(200, 200)).requires_grad_()
    W = sl(X)
    assert logdet(W).abs() < 1e-2
    (gradient,) = torch.autograd.grad(W, X, torch.randn(200, 200))
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("scale", [0.3, 0.9, 1.05])
@pytest.mark.parametrize("n", [2, 3])
def test_nearest_point_against_scipy(n, scale):
    X = scale * with_singular_values(*([1.3, 0.8, 0.96][:n]))
    found = sl(X)
    here = float((found - X).square().sum())

    def objective(w):
        return float(((torch.from_numpy(w).reshape(n, n) - X) ** 2).sum())

    def constraint(w):
        return float(torch.det(torch.from_numpy(w).reshape(n, n))) - 1

    for start in (found, found + 0.3 * torch.randn(n, n, dtype=DOUBLE), torch.eye(n)):
        result = minimize(
            objective,
            start.double().flatten().numpy(),
            constraints={"type": "eq", "fun": constraint},
            options={"ftol": 1e-14, "maxiter": 500},
        )
        if abs(constraint(result.x)) < 1e-8:
            assert here <= result.fun + 1e-8
    if scale < 1:
        assert float(sl.violation(X)) == pytest.approx(math.sqrt(here))


def test_violation_of_a_larger_determinant_is_the_distance():
    # The nearest member to 3 I is not I, 2.83 away, but diag(2.618, 0.382).
    assert float(sl.violation(3 * torch.eye(2))) == pytest.approx(math.sqrt(7), rel=1e-5)
    # Both I and diag(1.5 - t, ..., 1.5 - t, t) are stationary, and the second one is nearer.
    t = brentq(lambda t: math.log(t) + 9 * math.log(1.5 - t), 1e-9, 0.1)
    expected = math.sqrt((1.5 - t) ** 2 + 9 * t**2)
    assert expected < math.sqrt(10 * 0.5**2)
    assert float(sl.violation(1.5 * torch.eye(10))) == pytest.approx(expected, rel=1e-4)
    assert float(sl.violation(1.01 * torch.eye(2))) == pytest.approx(0.01 * 2**0.5, rel=1e-4)
    assert float(sl.violation(torch.zeros(3, 3))) == pytest.approx(3**0.5)
    assert float(sl.violation(torch.diag(torch.tensor([1.0, -1.0])))) > 1


@pytest.mark.parametrize(
    "values",
    [(2.0, 1.0, 0.5), (1.0, 1.0, 1.0), (0.3, 0.2, 0.2), (30.0, 2.0, 2.0), (1.1, 1.1, 1.0)],
)
@pytest.mark.parametrize("sign", [1, -1])
def test_derivatives_at_equal_singular_values(values, sign):
    if sign < 0:
        values = (*values[:-1], values[-1] / 2)
    X = with_singular_values(*values, sign=sign).requires_grad_()
    assert gradcheck(sl, X)
    assert gradgradcheck(sl, X)


def test_the_derivative_at_a_member_is_the_tangent_projection():
    W = sl.sample((4, 4), dtype=DOUBLE)
    normal = torch.linalg.inv(W).mT.flatten()
    normal = normal / normal.norm()
    expected = torch.eye(16, dtype=DOUBLE) - torch.outer(normal, normal)
    torch.testing.assert_close(jacrev(sl)(W).reshape(16, 16), expected)


@pytest.mark.parametrize(("dtype", "decades"), [(torch.float32, 6), (DOUBLE, 12)])
def test_ill_conditioned_members_come_back(dtype, decades):
    sizes = (10.0 ** (decades * (0.5 - k / 8)) for k in range(9))
    W = with_singular_values(*sizes, dtype=dtype)
    assert sl.contains(W)
    found = sl(sl.right_inverse(W))
    assert float((found - W).norm() / W.norm()) <= 4 * torch.finfo(dtype).eps


def test_adam_reaches_an_optimum():
    # The member nearest to a matrix with determinant 0.1, the projection.
    target = with_singular_values(1.0, 0.5, 0.2)
    best = float((sl.project(target) - target).square().sum())
    starts = [sl.sample((3, 3), dtype=DOUBLE) for _ in range(2)]
    starts += [sl.project(value * torch.ones(3, 3, dtype=DOUBLE)) for value in (0.0, 1.0)]
    starts.append(torch.eye(3, dtype=DOUBLE))
    assert (trained(sl, torch.stack(starts), target) <= best * (1 + 1e-3)).all()


def test_geotorch_members_are_members():
    manifold = geotorch.SL((6, 6))
    for _ in range(5):
        W = manifold.sample().detach().double()
        W = W * torch.exp(-torch.linalg.slogdet(W).logabsdet / 6)
        if torch.det(W) > 0:
            torch.testing.assert_close(sl(W), W)
    for W in sl.sample((10, 6, 6)):
        assert manifold.in_manifold(W)
    invertible = geotorch.GLp((6, 6))
    for W in gl.sample((10, 6, 6), dtype=DOUBLE):
        assert invertible.in_manifold(W)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("constraint", [gl, positive, sl])
def test_g17_half_precision_layers(dtype, constraint):
    layer = constrain(nn.Linear(5, 5, dtype=dtype), "weight", constraint)
    assert constraint.contains(layer.weight.detach())
    layer(torch.randn(2, 5, dtype=dtype)).float().sum().backward()


def test_g20_positive_definite_with_determinant_one():
    # There the two can't be combined. Here the map of the second keeps symmetric positive matrices:
    # it changes singular values only, which are the eigenvalues.
    layer = nn.Linear(4, 4).double()
    with torch.no_grad():
        layer.weight.copy_(torch.eye(4))
    register_parametrization(layer, "weight", PositiveDefinite())
    register_parametrization(layer, "weight", SpecialLinear())
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    noise = torch.randn(4, 4, dtype=DOUBLE)
    for _ in range(50):
        W = layer.weight
        torch.testing.assert_close(W, W.mT)
        assert torch.linalg.eigvalsh(W.detach()).min() > 0
        assert float(torch.det(W.detach())) == pytest.approx(1)
        optimizer.zero_grad()
        (W * noise).sum().backward()
        optimizer.step()
    assert not torch.allclose(layer.weight, torch.eye(4, dtype=DOUBLE), atol=0.1)


def test_arguments():
    assert repr(Invertible(sign=1)) == "invertible(sign=1)"
    for sign in (0, 2, True, "positive"):
        with pytest.raises(ValueError, match="sign must be 1, -1 or None"):
            Invertible(sign=sign)
    for constraint in (gl, sl):
        with pytest.raises(ValueError, match="square"):
            constraint.project(torch.randn(3, 2))
