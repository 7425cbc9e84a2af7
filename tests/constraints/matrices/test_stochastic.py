"""Stochastic and doubly stochastic matrices: sums, spreads, derivatives, optima."""

import geoopt
import pytest
import scipy.optimize
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.distributions import constraint_registry, constraints

import constrained
from constrained import tolerance
from constraints import ColumnStochastic, DoublyStochastic, RowStochastic, SoftPermutation
from constraints.math.birkhoff import nearest_doubly_stochastic
from constraints.math.sinkhorn import sinkhorn

DTYPES = [torch.float32, torch.float64]
STARTS = ["zeros", "eye", "permutation", "random", "boundary"]
row, column, doubly = RowStochastic(), ColumnStochastic(), DoublyStochastic()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def sums(W):
    W = W.double()
    return torch.maximum((W.sum(-1) - 1).abs().amax(-1), (W.sum(-2) - 1).abs().amax(-1))


def unrolled(X, rounds):
    for _ in range(rounds):
        X = X - X.logsumexp(-1, keepdim=True)
        X = X - X.logsumexp(-2, keepdim=True)
    return X.exp()


def start(constraint, name, n=4):
    if name == "random":
        return constraint.sample((n, n), generator=generator(5))
    if name == "permutation":
        return torch.eye(n)[torch.randperm(n, generator=generator(6))]
    value = {
        "zeros": torch.zeros(n, n),
        "eye": torch.eye(n),
        "boundary": 10 * torch.randn(n, n, generator=generator(7)),
    }[name]
    return constraint.project(value)


def minimize(constraint, start, loss, steps=400, lr=0.1):
    X = constraint.right_inverse(start).requires_grad_()
    # Next to a permutation gradients are small: below the epsilon that Adam adds by default.
    optimizer = torch.optim.Adam([X], lr=lr, eps=1e-30)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(constraint(X)).backward()
        optimizer.step()
        schedule.step()
    return constraint(X).detach()


# ------------------------------------------------------------------------------- rows and columns


def test_values_of_rows_and_columns():
    X = torch.tensor([[1.0, 3.0], [2.0, 6.0], [1.0, 3.0]]).log()
    torch.testing.assert_close(row(X), torch.tensor([[0.25, 0.75]]).expand(3, 2))
    expected = torch.tensor([[0.25], [0.5], [0.25]]).expand(3, 2)
    torch.testing.assert_close(column(X), expected)
    assert row.violation(torch.tensor([[0.5, 0.5], [1.2, -0.2]])) == pytest.approx(0.2)
    assert column.violation(torch.tensor([[0.5, 1.2], [0.5, -0.2]])) == pytest.approx(0.2)


def test_rows_agree_with_torch_distributions():
    X = torch.randn(5, 3, 4, dtype=torch.float64)
    transform = constraint_registry.transform_to(constraints.simplex)
    torch.testing.assert_close(row(X), transform(X))
    assert row.contains(transform(X)).all()
    assert constraints.simplex.check(row.sample((7, 3, 4))).all()
    assert constraints.simplex.check(column.sample((7, 3, 4)).mT).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (6, 1), (512, 512), (0, 3, 2)])
@pytest.mark.parametrize("constraint", [row, column], ids=["row", "column"])
def test_rows_and_columns_at_the_ends_of_the_range(constraint, shape, dtype):
    for scale in (0.0, 1e-6, 1.0, 1e3, 1e6):
        X = (scale * torch.randn(shape, dtype=dtype)).requires_grad_()
        W = constraint(X)
        (gradient,) = torch.autograd.grad((W * torch.randn_like(W)).sum(), X)
        assert torch.isfinite(gradient).all()
        assert constraint.contains(W).all()
        assert constraint.contains(constraint.project(X.detach())).all()


@pytest.mark.parametrize("constraint", [row, column], ids=["row", "column"])
def test_adam_reaches_the_frequencies(constraint):
    # The most likely transition matrix has the relative frequencies in its rows.
    counts = torch.tensor([[8.0, 1, 1, 2], [1, 1, 1, 1], [5, 0.5, 3, 4], [1, 2, 4, 8]])
    counts = counts if constraint is row else counts.mT
    # One element of a batch knows nothing of the others, nor does Adam.
    starts = torch.stack([start(constraint, name) for name in STARTS])
    found = minimize(constraint, starts, lambda W: -(counts * W.log()).sum(), lr=0.3)
    expected = counts / counts.sum(-1 if constraint is row else -2, keepdim=True)
    for name, W in zip(STARTS, found, strict=True):
        torch.testing.assert_close(W, expected, rtol=1e-3, atol=1e-4, msg=name)


# ------------------------------------------------------------------------------ doubly stochastic


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 2, 4, 64])
@pytest.mark.parametrize("spread", [0.0, 1e-6, 1.0, 3.0, 10.0, 100.0, 1e3, 1e6])
def test_sums_are_exact_for_logits_of_every_spread(dtype, n, spread):
    # 20 unrolled rounds leave 0.07 at the spread 10.
    X = (spread * torch.randn(5, n, n, dtype=dtype, generator=generator())).requires_grad_()
    W = doubly(X)
    (gradient,) = torch.autograd.grad((W * torch.randn_like(W)).sum(), X)
    assert (W >= 0).all()
    assert (sums(W) <= 8 * torch.finfo(dtype).eps).all()
    assert torch.isfinite(gradient).all()
    # A constant in a row or column changes nothing.
    assert (sums(1 / n + gradient) <= 50 * torch.finfo(dtype).eps).all()


@pytest.mark.parametrize("spread", [1.0, 10.0])
def test_a_large_matrix(spread):
    W = doubly(spread * torch.randn(512, 512, generator=generator()))
    assert sums(W) <= 1e-6
    assert doubly.contains(W)


@pytest.mark.parametrize(("spread", "rounds"), [(0.1, 50), (1.0, 200), (2.0, 3000)])
def test_value_and_derivatives_equal_those_of_unrolled_rounds(spread, rounds):
    X = spread * torch.randn(5, 5, dtype=torch.float64, generator=generator(1))
    G, H = torch.randn(2, 5, 5, dtype=torch.float64, generator=generator(2))
    found = []
    for function in (sinkhorn, lambda X: unrolled(X, rounds)):
        leaf = X.clone().requires_grad_()
        W = function(leaf)
        (first,) = torch.autograd.grad(W, leaf, G, create_graph=True)
        (second,) = torch.autograd.grad(first, leaf, H)
        found.append((W.detach(), first.detach(), second))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)
    _, tangent = torch.func.jvp(sinkhorn, (X,), (G,))
    torch.testing.assert_close(tangent, found[0][1], rtol=0, atol=1e-14)


@pytest.mark.parametrize("spread", [0.0, 1.0, 10.0])
def test_derivatives(spread):
    X = (
        spread * torch.randn(2, 4, 4, dtype=torch.float64, generator=generator(3))
    ).requires_grad_()
    assert gradcheck(sinkhorn, X, check_forward_ad=True)
    assert gradgradcheck(sinkhorn, X)


def test_the_gradient_by_conjugate_gradients_is_the_one_by_factorization():
    X = torch.randn(3, 40, 40, dtype=torch.float64, generator=generator(4)).requires_grad_()
    G = torch.randn(3, 40, 40, dtype=torch.float64, generator=generator(5))
    (by_iteration,) = torch.autograd.grad(sinkhorn(X), X, G)
    (factored,) = torch.autograd.grad(sinkhorn(X), X, G, create_graph=True)
    torch.testing.assert_close(by_iteration, factored, rtol=0, atol=1e-14)


def test_one_element_that_is_not_finite_spoils_no_other():
    X = torch.randn(3, 4, 4)
    X[1, 2, 3] = torch.nan
    W = sinkhorn(X)
    assert torch.isnan(W[1]).all()
    torch.testing.assert_close(W[[0, 2]], sinkhorn(X[[0, 2]]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 2, 5, 64])
def test_round_trip(dtype, n):
    W = doubly.sample((3, n, n), dtype=dtype)
    for value in (W, torch.eye(n, dtype=dtype), torch.full((n, n), 1 / n, dtype=dtype)):
        back = doubly(doubly.right_inverse(value))
        assert ((back - value).norm(dim=(-2, -1)) <= tolerance(value, 2)).all()
    face = torch.block_diag(*[doubly.sample((k, k), dtype=dtype) for k in (1, 2, n)])
    # Zeros in blocks: what is between them is balanced by rounding.
    assert (doubly(doubly.right_inverse(face)) - face).norm() <= 2 * tolerance(face, 2)


@pytest.mark.parametrize("n", [1, 3, 6])
@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_projection_is_the_nearest_point(n, scale):
    X = scale * torch.randn(n, n, dtype=torch.float64, generator=generator(n))
    W = doubly.project(X)
    assert sums(W) <= 1e-14
    # The variational inequality: no vertex V has <X - W, V - W> > 0.
    rows, columns = scipy.optimize.linear_sum_assignment(-(X - W).numpy())
    assert float((X - W)[rows, columns].sum() - ((X - W) * W).sum()) <= 1e-12 * (1 + scale)


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e6])
def test_projection_of_large_matrices(scale):
    X = scale * torch.randn(64, 64, generator=generator(8))
    W = doubly.project(X)
    assert doubly.contains(W)
    if scale == 1e6:
        rows, columns = scipy.optimize.linear_sum_assignment(-X.numpy())
        torch.testing.assert_close(W[rows, columns], torch.ones(64))
    batch = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    single = torch.stack([nearest_doubly_stochastic(x) for x in batch.flatten(0, 1)])
    torch.testing.assert_close(nearest_doubly_stochastic(batch).flatten(0, 1), single)


def test_violation():
    assert doubly.violation(torch.tensor([[1.2, -0.2], [-0.2, 1.2]])) == pytest.approx(0.2)
    assert doubly.violation(torch.eye(3)) == 0
    assert doubly.violation(torch.tensor([[1.0, 0.0], [1.0, 0.0]])) == pytest.approx(1.0)
    with pytest.raises(constrained.InfeasibleError, match=r"doubly_stochastic\(\): the value viol"):
        doubly.right_inverse(torch.ones(2, 2))
    with pytest.raises(ValueError, match="must be a square matrix"):
        doubly.check_shape((2, 3))


def test_agrees_with_geoopt():
    manifold = geoopt.manifolds.BirkhoffPolytope(max_iter=1000)
    assert manifold.check_point_on_manifold(doubly(torch.randn(4, 4)))
    theirs = manifold.random(4, 4, dtype=torch.float64)
    torch.testing.assert_close(doubly(theirs.log()), theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", STARTS)
def test_adam_reaches_the_projection(name):
    # Of a matrix whose nearest point lies inside: M + a 1' + 1 b' for a member M.
    nearest = doubly.sample((4, 4), generator=generator(9))
    a, b = torch.randn(2, 4, 1, generator=generator(10))
    target = nearest + a + b.mT
    W = minimize(doubly, start(doubly, name), lambda W: (W - target).square().sum())
    # The set is convex: ||W - nearest||^2 is no more than what the loss is too large by.
    excess = (W - target).square().sum() / (nearest - target).square().sum() - 1
    assert excess <= 1e-4


# -------------------------------------------------------------------------------- soft permutation


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_adam_solves_the_assignment_problem(temperature):
    constraint = SoftPermutation(temperature)
    gain = torch.randn(4, 4, generator=generator(11))
    starts = torch.stack([start(constraint, name) for name in STARTS])
    W = minimize(constraint, starts, lambda W: -(gain * W).sum(), lr=temperature * 0.2)
    rows, columns = scipy.optimize.linear_sum_assignment(-gain.numpy())
    best = float(gain[rows, columns].sum())
    assert (gain * W).sum((-2, -1)).tolist() == pytest.approx([best] * len(STARTS), rel=1e-3)


def test_temperature():
    X = torch.randn(6, 6, generator=generator(12))
    cold, warm = SoftPermutation(0.01)(X), SoftPermutation(100.0)(X)
    rows, columns = scipy.optimize.linear_sum_assignment(-X.numpy())
    assert cold[rows, columns].min() > 0.99
    torch.testing.assert_close(warm, torch.full((6, 6), 1 / 6), rtol=0.1, atol=0)
    torch.testing.assert_close(SoftPermutation(2.0)(X), doubly(X / 2))
    W = SoftPermutation(0.5).sample((3, 6, 6))
    torch.testing.assert_close(SoftPermutation(0.5)(SoftPermutation(0.5).right_inverse(W)), W)


def test_arguments_and_names():
    with pytest.raises(TypeError, match="temperature must be a number, got 'cold'"):
        SoftPermutation("cold")  # type: ignore[arg-type]
    for wrong in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="temperature must be positive and finite"):
            SoftPermutation(wrong)
    for alias in ("birkhoff", "bistochastic"):
        assert constrained.get(alias) is DoublyStochastic
    assert doubly(torch.zeros(0, 3, 3)).shape == doubly.project(torch.zeros(0, 3, 3)).shape
