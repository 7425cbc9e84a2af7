"""The l1 ball: its projection, its faces, sparse optima."""

import itertools

import pytest
import torch
from torch import nn

import constrained
from constraints import Ball, L1Ball

DTYPES = [torch.float32, torch.float64]
BALLS = [L1Ball(radius=1.5), Ball(radius=1.5, p=1)]


def by_bisection(y, radius):
    """The nearest point of the ball, by bisection for what is taken off every entry."""
    low, high = torch.zeros_like(y[..., :1]), y.abs().amax(-1, keepdim=True)
    for _ in range(200):
        middle = (low + high) / 2
        more = (y.abs() - middle).clamp(min=0).sum(-1, keepdim=True) > radius
        low, high = torch.where(more, middle, low), torch.where(more, high, middle)
    return y.sign() * (y.abs() - high).clamp(min=0)


@pytest.mark.parametrize("ball", BALLS, ids=str)
@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("n", [1, 4, 512])
def test_the_projection_is_that_of_bisection(ball, scale, n):
    y = scale * torch.randn(20, n, dtype=torch.float64)
    expected = by_bisection(y, 1.5)
    torch.testing.assert_close(ball.project(y), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-6, 1.0, 1e6, 1e18, 1e30])
def test_any_parameter_gives_a_member_and_a_gradient(dtype, scale):
    for n in (1, 5, 512):
        y = (scale * torch.randn(3, n, dtype=dtype)).requires_grad_()
        value = L1Ball()(y)
        assert L1Ball().contains(value).all()
        (gradient,) = torch.autograd.grad(value.square().sum(), y)
        assert gradient.isfinite().all()


def test_large_vectors_keep_the_digits_of_the_radius():
    # 1e9 - 1 and 1e9 are one number in single precision.
    y = torch.tensor([1e9, -1e9, 1.0, 0.0])
    torch.testing.assert_close(L1Ball().project(y), torch.tensor([0.5, -0.5, 0.0, 0.0]))
    assert L1Ball().violation(y) == 1e9


def test_small_entries_are_zero_to_the_bit():
    value = L1Ball().project(torch.tensor([3.0, -2.5, 1.0, 0.1]))
    torch.testing.assert_close(value, torch.tensor([0.75, -0.25, 0.0, 0.0]))
    assert value[2:].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_points_of_the_boundary_come_back_and_are_left_in_every_direction(dtype):
    # Corners, faces of every dimension, and a point on all of them at n = 512.
    for n in (1, 3, 512):
        x = torch.randn(4, n, dtype=dtype)
        x[1, 1:], x[2, n // 2 :] = 0, 0
        if n == 1:
            x[2] = 1
        x[3] = 1
        x = 1.5 * x / x.abs().sum(-1, keepdim=True)
        for ball in BALLS:
            y = ball.right_inverse(x).requires_grad_()
            torch.testing.assert_close(ball(y), x, rtol=0, atol=8 * torch.finfo(dtype).eps)
            (gradient,) = torch.autograd.grad(ball(y).sum(), y)
            assert torch.equal(gradient, torch.ones_like(y))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_violation_is_that_of_the_nearest_point(dtype):
    y = torch.tensor([[0.5, 0.25], [1.0, 1.0], [4.0, 0.5]], dtype=dtype)
    assert L1Ball().violation(y).tolist() == [0.0, 0.5, 3.0]
    assert Ball(p=1).violation(y).tolist() == [0.0, 0.5, 3.0]
    # In torch's own words, up to rounding: the p-norm, which grows with the number of entries.
    dense = torch.randn(10, 512, dtype=dtype)
    dense = dense / torch.linalg.vector_norm(dense, 1, dim=-1, keepdim=True)
    assert L1Ball().contains(dense).all() and not L1Ball().contains(1.0001 * dense).any()


STARTS = {
    "zeros": torch.zeros(5),
    "ones": torch.ones(5),
    "another corner": torch.tensor([0.0, 0.0, -1.0, 0.0, 0.0]),
    "another face": torch.tensor([-0.5, 0.0, 0.25, 0.0, 0.25]),
    "far outside": torch.tensor([30.0, -20.0, 1.0, 5.0, -40.0]),
}
TARGETS = {
    "corner": torch.tensor([3.0, 0.5, -0.5, 0.1, 1.0]),
    "edge": torch.tensor([1.0, 0.2, -0.8, 0.05, 0.0]),
    "face": torch.tensor([0.6, -0.7, 0.8, -0.5, 0.9]),
    "interior": torch.tensor([0.1, -0.2, 0.3, 0.0, 0.1]),
}


@pytest.mark.parametrize("spec", ["l1_ball", "ball(p=1)"])
def test_adam_reaches_optima_on_faces_of_every_dimension(spec):
    # One element of a batch knows nothing of the others, nor does Adam.
    ways = [*itertools.product(STARTS, TARGETS)]
    goal = torch.stack([TARGETS[target] for _, target in ways]).double()
    layer = nn.Module()
    layer.register_parameter("x", nn.Parameter(torch.stack([STARTS[s] for s, _ in ways]).double()))
    constrained.constrain(layer, "x", spec)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 500)
    for _ in range(500):
        optimizer.zero_grad()
        (layer.x - goal).square().sum().backward()
        optimizer.step()
        schedule.step()
    best = (L1Ball().project(goal) - goal).square().sum(-1)
    gap = ((layer.x.detach() - goal).square().sum(-1) - best) / (best + 0.5)
    assert dict(zip(ways, (gap < 1e-3).tolist(), strict=True)) == dict.fromkeys(ways, True)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="l1_ball: radius must be positive and finite, got 0"):
        L1Ball(radius=0)
    with pytest.raises(constrained.InfeasibleError, match=r"l1_ball\(\)"):
        L1Ball().right_inverse(torch.ones(3))


def lasso(seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(60, 20, generator=generator, dtype=torch.float64)
    w = torch.zeros(20, dtype=torch.float64)
    w[:3] = torch.tensor([2.0, -1.0, 0.5])
    H, c = A.mT @ A / 60, A.mT @ (A @ w) / 60
    best = torch.zeros(20, dtype=torch.float64)
    for _ in range(300):
        best = by_bisection(best - (H @ best - c) / torch.linalg.matrix_norm(H, 2), 3.0)

    def loss(x):
        return (A.to(dtype) @ (x - w.to(dtype))).square().mean()

    return loss, best


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.03, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.03),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.003),
}


@pytest.mark.parametrize(
    ("spec", "optimizer", "dtype"),
    [
        ("l1_ball(radius=3)", "sgd", torch.float64),
        ("l1_ball(radius=3)", "adam", torch.float64),
        ("ball(radius=3, p=1)", "sgd", torch.float32),
        pytest.param("l1_ball(radius=3)", "momentum", torch.float64, marks=pytest.mark.slow),
        pytest.param("l1_ball(radius=3)", "adam", torch.float32, marks=pytest.mark.slow),
        pytest.param("l1_ball(radius=3)", "rmsprop", torch.float32, marks=pytest.mark.slow),
    ],
)
def test_lasso_reaches_its_sparse_optimum(spec, optimizer, dtype):
    loss, best = lasso(0, dtype)
    layer = nn.Module()
    layer.x = nn.Parameter(torch.zeros(20, dtype=dtype))
    constrained.constrain(layer, "x", spec)
    stepped = OPTIMIZERS[optimizer](layer.parameters())
    for _ in range(1500):
        stepped.zero_grad()
        loss(layer.x).backward()
        stepped.step()
    x = layer.x.detach()
    assert loss(x) - loss(best.to(dtype)) < 1e-4
    if optimizer in ("sgd", "momentum"):
        assert (x.abs() > 1e-7).tolist() == (best != 0).tolist()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_threshold_is_the_same_with_and_without_a_derivative(dtype):
    for n in (1, 7, 300):
        y = 3 * torch.randn(50, n, dtype=dtype)
        y[0], y[1, n // 2 :] = 2.0, 0
        with_graph = L1Ball()(y.clone().requires_grad_()).detach()
        torch.testing.assert_close(L1Ball()(y), with_graph, rtol=0, atol=8 * torch.finfo(dtype).eps)
