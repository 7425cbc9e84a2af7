import copy
import gc
import weakref

import pytest
import torch
from torch import nn

from constrained import constrain, restore
from constraints import Orthogonal


def trained(layer, optimizer, steps=5):
    for _ in range(steps):
        optimizer.zero_grad()
        layer(torch.ones(2, 4)).square().sum().backward()
        optimizer.step()


def defect(layer):
    X = layer.parametrizations.weight.original.detach()
    return float((X.mT @ X - torch.eye(4)).abs().max())


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
        lambda p: torch.optim.RMSprop(p, lr=0.01),
        lambda p: torch.optim.Adam(p, lr=0.1, foreach=True),
    ],
)
def test_the_parameter_is_canonical_after_each_step(make):
    layer = constrain(nn.Linear(4, 4), "weight", "orthogonal")
    optimizer = make(layer.parameters())
    for _ in range(5):
        trained(layer, optimizer, 1)
        assert defect(layer) < 1e-5


def test_without_the_hook_the_value_is_the_same_up_to_rounding(monkeypatch):
    layer = constrain(nn.Linear(4, 4), "weight", "orthogonal").double()
    twin = copy.deepcopy(layer)
    # Plain descent by hand: no optimizer, so no hook.
    for _ in range(20):
        (gradient,) = torch.autograd.grad(
            twin(torch.ones(2, 4, dtype=torch.double)).square().sum(),
            [twin.parametrizations.weight.original],
        )
        with torch.no_grad():
            twin.parametrizations.weight.original -= 0.01 * gradient
        W = twin.weight
        torch.testing.assert_close(W @ W.T, torch.eye(4, dtype=torch.double))


def test_other_models_are_left_alone():
    layer = constrain(nn.Linear(4, 4), "weight", "orthogonal")
    with torch.no_grad():
        layer.parametrizations.weight.original.mul_(1.5)
    other = nn.Linear(4, 4)
    trained(other, torch.optim.SGD(other.parameters(), lr=0.1))
    assert defect(layer) > 1
    trained(layer, torch.optim.SGD(layer.parameters(), lr=0.0), 1)
    assert defect(layer) < 1e-5


def test_copies_are_restored_too():
    layer = copy.deepcopy(constrain(nn.Linear(4, 4), "weight", "orthogonal"))
    trained(layer, torch.optim.SGD(layer.parameters(), lr=0.3))
    assert defect(layer) < 1e-5


def test_a_view_and_a_frozen_base_are_restored():
    layer = nn.Linear(4, 4)
    constrain(layer, "weight", "orthogonal", view="(g a) b -> g a b", g=1)
    trained(layer, torch.optim.SGD(layer.parameters(), lr=0.3))
    assert defect(layer) < 1e-5


def test_the_hook_holds_on_to_nothing():
    layer = constrain(nn.Linear(4, 4), "weight", "orthogonal")
    trained(layer, torch.optim.SGD(layer.parameters(), lr=0.1))
    watched = weakref.ref(layer.parametrizations.weight)
    assert watched() in restore._watched
    del layer
    gc.collect()
    assert watched() is None


def test_canonical_keeps_the_value():
    X = torch.randn(6, 3)
    (canonical,) = Orthogonal().canonical(X)
    torch.testing.assert_close(Orthogonal()(canonical), Orthogonal()(X))


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
        lambda p: torch.optim.Rprop(p),
        lambda p: torch.optim.Adam(p, lr=0.05),
    ],
)
def test_nonnegative_settles_at_the_boundary(make):
    """Nonnegative least squares: momentum that points out of the set must not throw back."""
    module = constrain(nn.ParameterDict({"w": torch.ones(4)}), "w", "nonnegative")
    optimizer = make(module.parameters())
    target = torch.tensor([-1.0, -0.1, 0.5, 2.0])
    for _ in range(400):
        optimizer.zero_grad()
        (module.w - target).square().sum().backward()
        optimizer.step()
    torch.testing.assert_close(module.w, target.clamp(min=0), atol=5e-3, rtol=0)
