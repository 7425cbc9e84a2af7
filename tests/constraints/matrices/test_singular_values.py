"""Singular values in an interval: references, degenerate members, optima."""

import geotorch
import pytest
import torch
from scipy.linalg import svd as scipy_svd
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import jacrev

from constrained import InfeasibleError, constrain
from constraints import AlmostOrthogonal, Orthogonal, SingularValues

DOUBLE = torch.float64
RANGE = SingularValues(low=0.5, high=2.0)


def with_singular_values(*values, n=5, p=5):
    U, V = (Orthogonal().sample((side, len(values)), dtype=DOUBLE) for side in (n, p))
    return (U * torch.tensor(values, dtype=DOUBLE)) @ V.mT


def svdvals(W):
    return torch.linalg.svdvals(W.detach().double())


@pytest.mark.parametrize("shape", [(1, 1), (5, 5), (40, 7), (7, 40), (2, 3, 4, 4), (1, 6), (6, 1)])
@pytest.mark.parametrize(("low", "high"), [(0.5, 2.0), (1e-3, 1.0), (0.9, 1.1), (0.0, 3.0)])
def test_map_against_its_definition(shape, low, high):
    constraint = SingularValues(low, high)
    for scale in (1e-2, 1.0, 1e4):
        X = scale * torch.randn(shape, dtype=DOUBLE)
        expected = torch.empty_like(X)
        for found, x in zip(
            expected.view(-1, *shape[-2:]), X.reshape(-1, *shape[-2:]), strict=True
        ):
            U, s, Vh = scipy_svd(x.numpy(), full_matrices=False)
            found.copy_(torch.from_numpy((U * s.clip(low, high)) @ Vh))
        torch.testing.assert_close(constraint(X), expected, rtol=0, atol=1e-11 * high)


@pytest.mark.parametrize(("n", "p"), [(1, 1), (3, 3), (64, 64), (100, 20), (20, 100)])
@pytest.mark.parametrize("constraint", [RANGE, AlmostOrthogonal(0.1), SingularValues(1e-4, 1.0)])
def test_the_bounds_are_exact_at_every_scale(n, p, constraint):
    low, high = constraint.bounds()
    for scale in (0.0, 1e-38, 1e-30, 1e-6, 1.0, 1e6, 1e30, 1e37):
        for X in (scale * torch.randn(n, p), torch.full((n, p), scale), scale * torch.eye(n, p)):
            X.requires_grad_()
            W = constraint(X)
            s = svdvals(W)
            # A few roundings of the largest singular value.
            assert s.max() <= high * (1 + 1e-5)
            assert s.min() >= low - 3e-6 * s.max()
            assert constraint.contains(W)
            (gradient,) = torch.autograd.grad(W, X, torch.randn(n, p))
            assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("constraint", [RANGE, AlmostOrthogonal(0.3)])
def test_members_come_back_bit_for_bit(dtype, constraint):
    clipped = constraint.project(10 * torch.randn(3, 30, 20, dtype=dtype))
    inside = constraint.sample((3, 7, 5), dtype=dtype)
    for W in (clipped, inside, inside.mT.contiguous(), torch.eye(4, dtype=dtype)):
        for found in (constraint(W), constraint.right_inverse(W), constraint.project(W)):
            assert torch.equal(found, W)


def test_an_element_inside_stays_beside_one_outside():
    inside = RANGE.sample((4, 4))
    pair = torch.stack([inside, 10 * torch.randn(4, 4)])
    assert torch.equal(RANGE(pair)[0], inside)
    assert not torch.equal(RANGE(pair)[1], pair[1])


@pytest.mark.parametrize(
    "values",
    [(3.0, 1.0, 0.2), (3.0, 3.0, 0.2, 0.2), (1.0, 1.0, 0.1), (4.0, 2.5, 1.5, 1.5, 0.4)],
    ids=str,
)
@pytest.mark.parametrize("shape", [(5, 5), (6, 5), (5, 7)])
def test_derivatives_at_equal_singular_values(values, shape):
    rest = min(shape) - len(values)
    X = with_singular_values(*values, *[1.2] * rest, n=shape[0], p=shape[1]).requires_grad_()
    assert gradcheck(RANGE, X)
    assert gradgradcheck(RANGE, X)


def test_the_derivative_of_a_member_is_the_identity():
    for W in (RANGE.project(10 * torch.randn(3, 3)), torch.eye(3), 0.5 * torch.eye(3)):
        assert torch.equal(jacrev(RANGE)(W).reshape(9, 9), torch.eye(9))


def test_projection_is_nearest_in_both_norms():
    X = with_singular_values(5.0, 3.0, 1.0, 0.1, 0.01)
    W = RANGE.project(X)
    for _ in range(50):
        other = RANGE(W + 0.1 * torch.randn(5, 5, dtype=DOUBLE))
        for norm in ("fro", 2):
            here, there = (torch.linalg.matrix_norm(X - Y, norm) for Y in (W, other))
            assert there >= here - 1e-12


@pytest.mark.parametrize(
    "shape", [(4, 4), *(pytest.param(s, marks=pytest.mark.slow) for s in ((6, 3), (3, 6)))]
)
def test_adam_reaches_the_nearest_member(shape):
    target = with_singular_values(4.0, 1.0, 0.05, n=shape[0], p=shape[1])
    best = (RANGE.project(target) - target).square().sum()
    # The square start is in the piece of the target's projection: no step leads to the other one.
    starts = [RANGE.sample(shape, dtype=DOUBLE) for _ in range(4)]
    starts.append(RANGE.project(torch.zeros(shape, dtype=DOUBLE)))
    for start in starts:
        if shape[0] == shape[1] and torch.det(start) * torch.det(RANGE.project(target)) < 0:
            start[0] *= -1
    layer = nn.Module()
    layer.weight = nn.Parameter(torch.stack(starts))
    constrain(layer, "weight", RANGE)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1200)
    for _ in range(1200):
        optimizer.zero_grad()
        losses = (layer.weight - target).square().sum((-2, -1))
        losses.sum().backward()
        optimizer.step()
        schedule.step()
    assert (losses <= best * (1 + 1e-3)).all()
    assert RANGE.contains(layer.weight.detach()).all()


# --------------------------------------------------------------------- beside the nearest peer


@pytest.mark.parametrize("shape", [(5, 5), (6, 4)])
def test_geotorch_members_are_members(shape):
    manifold = geotorch.AlmostOrthogonal(shape, lam=0.3)
    W = torch.stack([manifold.sample() for _ in range(5)]).detach()
    constraint = AlmostOrthogonal(radius=0.3)
    torch.testing.assert_close(constraint(W), W)
    ours = constraint.sample((20, *shape), dtype=DOUBLE)
    assert all(manifold.in_manifold(w) for w in ours)


def test_g06_wide_layers():
    # geotorch 0.4 fails: its sample forgets the transpose.
    with pytest.raises(RuntimeError):
        geotorch.almost_orthogonal(nn.Linear(6, 4), "weight", lam=0.3)
    for layer in (nn.Linear(6, 4), nn.Linear(4, 6)):
        constrain(layer, "weight", "almost_orthogonal(radius=0.3)")
        s = svdvals(layer.weight)
        assert s.min() >= 0.7 - 1e-6
        assert s.max() <= 1.3 + 1e-6


def test_g10_no_function_leaves_its_range():
    # There a function of the singular values outside of its range puts NaN into the weight: here
    # there are bounds, checked at once, and the values are between them whatever the parameters.
    for bad in (0.0, 1.0, 1.5, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="radius"):
            AlmostOrthogonal(radius=bad)
    for low, high in ((-0.1, 1.0), (1.0, 1.0), (2.0, 1.0), (0.0, float("inf"))):
        with pytest.raises(ValueError, match="singular_values: "):
            SingularValues(low=low, high=high)
    layer = constrain(nn.Linear(5, 5), "weight", AlmostOrthogonal(0.99))
    with torch.no_grad():
        for scale in (0.0, 1e-30, 1e30):
            layer.parametrizations.weight.original.copy_(scale * torch.randn(5, 5))
            assert torch.isfinite(layer.weight).all()
            assert AlmostOrthogonal(0.99).contains(layer.weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_g17_half_precision_layers(dtype):
    layer = nn.Linear(6, 4, dtype=dtype)
    constrain(layer, "weight", "almost_orthogonal(radius=0.5)")
    assert AlmostOrthogonal(0.5).contains(layer.weight.detach())
    layer(torch.randn(2, 6, dtype=dtype)).float().sum().backward()


def test_convolution_kernels_as_matrices():
    conv = nn.Conv2d(3, 8, 3)
    constrain(conv, "weight", "almost_orthogonal(radius=0.25)", view="o i h w -> o (i h w)")
    s = svdvals(conv.weight.flatten(1))
    assert s.min() >= 0.75 - 1e-6
    assert s.max() <= 1.25 + 1e-6


def test_violation_is_the_distance():
    assert RANGE.violation(with_singular_values(2.5, 1.0, 1.0, 1.0, 1.0)) == pytest.approx(0.5)
    assert RANGE.violation(with_singular_values(2.0, 0.1, 1.0, 1.0, 1.0)) == pytest.approx(0.4)
    assert RANGE.violation(torch.eye(3)) == 0
    with pytest.raises(InfeasibleError, match=r"singular_values\(low=0.5, high=2.0\)"):
        RANGE.right_inverse(3 * torch.eye(3))


def test_condition():
    for dtype, low in ((torch.float32, 1e-6), (DOUBLE, 1e-12)):
        constraint = SingularValues(low=low, high=1.0)
        s = torch.logspace(0, 1, 8, base=low, dtype=DOUBLE)
        U, V = (Orthogonal().sample((8, 8), dtype=DOUBLE) for _ in range(2))
        W = ((U * s) @ V.mT).to(dtype)
        torch.testing.assert_close(constraint(constraint.right_inverse(W)), W, rtol=0, atol=1e-6)
        assert constraint.contains(W)


def test_samples_are_uniform_between_the_bounds():
    s = svdvals(RANGE.sample((2000, 3, 2), generator=torch.Generator().manual_seed(0)))
    assert float(s.mean()) == pytest.approx(1.25, abs=0.02)
    assert float(s.var()) == pytest.approx(1.5**2 / 12, abs=0.02)
