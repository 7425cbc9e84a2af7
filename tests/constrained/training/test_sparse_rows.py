"""Gradients with few rows that are not zero: only these move, and only these are brought back."""

import pytest
import torch
from torch import nn

from constrained import NonfiniteGradientError, assert_feasible, constrain

ROWS, WIDTH = 5000, 8


def embedding(constraint="sphere", dtype=torch.float32, **more):
    torch.manual_seed(0)
    return constrain(nn.Embedding(ROWS, WIDTH, dtype=dtype), "weight", constraint, mode="project")


def backward(layer, rows):
    target = torch.arange(len(rows) * WIDTH, dtype=layer.weight.dtype).view(-1, WIDTH)
    (layer(rows) - target / 10).square().sum().backward()


READ = torch.tensor([3, 17, 17, 4999])


def steps(layer, optimizer, count=3):
    for _ in range(count):
        optimizer.zero_grad()
        backward(layer, READ)
        optimizer.step()


@pytest.mark.parametrize("constraint", ["sphere", "max_norm(bound=0.5)", "simplex", "nonnegative"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_that_were_not_read_stay_bit_for_bit(constraint, dtype):
    layer = embedding(constraint, dtype)
    before = layer.weight.detach().clone()
    steps(layer, torch.optim.SGD(layer.parameters(), lr=0.1))
    assert_feasible(layer)
    moved = (layer.weight != before).any(1)
    assert moved.nonzero().flatten().tolist() == [3, 17, 4999]
    assert layer.weight.grad.layout is torch.strided


@pytest.mark.parametrize("foreach", [True, False])
def test_they_move_as_in_a_small_table(foreach):
    large, small = embedding(), nn.Embedding(3, WIDTH)
    rows = READ.unique()
    with torch.no_grad():
        small.weight.copy_(large.weight[rows])
    constrain(small, "weight", "sphere", mode="project")
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1, foreach=foreach) for m in (large, small)]
    for _ in range(3):
        for layer, optimizer, read in zip(
            (large, small), optimizers, (READ, torch.searchsorted(rows, READ)), strict=True
        ):
            optimizer.zero_grad()
            backward(layer, read)
            optimizer.step()
    torch.testing.assert_close(large.weight[rows], small.weight)
    torch.testing.assert_close(large.weight.grad[rows], small.weight.grad)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.1),
        lambda p: torch.optim.SGD(p, lr=0.1, maximize=True),
        lambda p: torch.optim.SGD(p, lr=0.1, fused=True),
        lambda p: torch.optim.Adam(p, lr=0.1),
    ],
    ids=["momentum", "decay", "maximize", "fused", "adam"],
)
def test_other_steps_are_made_with_the_dense_gradient(make):
    layer = embedding()
    steps(layer, make(layer.parameters()))
    assert_feasible(layer)
    assert layer.weight.grad.layout is torch.strided


def test_a_gradient_of_all_rows_is_no_sparse_one():
    layer = embedding()
    before = layer.weight.detach().clone()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    backward(layer, torch.arange(ROWS))
    optimizer.step()
    assert (layer.weight != before).any(1).all()
    # After it, few rows are noticed again.
    before = layer.weight.detach().clone()
    steps(layer, optimizer, 5)
    assert_feasible(layer)
    assert layer.weight[5].tolist() == before[5].tolist()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_is_told_of_before_anything_changes(bad):
    layer = embedding()
    before = layer.weight.detach().clone()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    backward(layer, READ)
    layer.weight.grad[17, 3] = bad
    with pytest.raises(NonfiniteGradientError, match="'weight'"):
        optimizer.step()
    assert torch.equal(layer.weight, before)
    assert layer.weight.grad.layout is torch.strided
    steps(layer, optimizer)
    assert_feasible(layer)


def test_a_step_that_fails_leaves_a_dense_gradient_for_the_next():
    layer = embedding()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    backward(layer, READ)
    original = optimizer._init_group
    optimizer._init_group = lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        optimizer.step()
    optimizer._init_group = original
    optimizer.step()
    assert layer.weight.grad.layout is torch.strided
    assert_feasible(layer)


def test_entries_that_underflow_when_squared_are_not_zero():
    layer = embedding("nonnegative")
    with torch.no_grad():
        layer.weight.zero_()
    layer.weight.grad = torch.zeros_like(layer.weight)
    layer.weight.grad[17] = -1e-30
    torch.optim.SGD(layer.parameters(), lr=1.0).step()
    assert (layer.weight[17] > 0).all()
    assert layer.weight.count_nonzero() == WIDTH


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.Adam(p, lr=0.1),
    ],
    ids=["momentum", "adam"],
)
def test_a_row_that_was_read_before_goes_on_with_its_momentum(make):
    layer = embedding()
    optimizer = make(layer.parameters())
    steps(layer, optimizer, 1)
    before = layer.weight.detach().clone()
    optimizer.zero_grad()
    backward(layer, torch.tensor([100]))
    optimizer.step()
    moved = (layer.weight != before).any(1).nonzero().flatten().tolist()
    assert moved == [3, 17, 100, 4999]
    assert_feasible(layer)


def test_weight_decay_reaches_rows_that_were_not_read():
    """On a sphere it has no tangent part; towards zero numbers move."""
    layer = embedding("nonnegative")
    before = layer.weight.detach().clone()
    assert (before[7] > 0).any()
    steps(layer, torch.optim.SGD(layer.parameters(), lr=0.1, weight_decay=0.1), 1)
    torch.testing.assert_close(layer.weight[7], before[7] * 0.99)
    assert_feasible(layer)
