"""higher: differentiating through steps of an optimizer."""

import higher
import pytest
import torch
from network import data, network
from torch import nn

from constrained import assert_feasible, baked_state_dict, constrain, report, spec, violations
from constrained.parametrized.tensor_locations import constrained_tensors


class Body(nn.Module):
    """Higher takes the root for none if it is false, as an nn.Sequential is while it is empty."""

    def __init__(self, layers):
        super().__init__()
        self.layers = layers

    def forward(self, x):
        return self.layers(x)


def loss(model):
    x, y = data()
    return (model(x) - y).square().mean()


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_inner_steps_are_differentiated(optimizer):
    model = network()
    inner = optimizer(model.parameters(), lr=1e-2)
    before = [p.detach().clone() for p in model.parameters()]
    with higher.innerloop_ctx(model, inner, copy_initial_weights=False) as (functional, steps):
        first = loss(functional)
        for _ in range(2):
            steps.step(loss(functional))
        last = loss(functional)
        assert last < first
        last.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert_feasible(model)


def test_the_values_of_inner_steps_are_members():
    model = constrain(nn.Linear(6, 3), "weight", "orthogonal")
    inner = torch.optim.SGD(model.parameters(), lr=0.5)
    with higher.innerloop_ctx(model, inner) as (functional, steps):
        steps.step(loss(functional))
        weight = functional.weight
    (_, _, constraint), *_ = constrained_tensors(model)
    assert not torch.allclose(weight, model.weight)
    assert constraint.contains(weight.detach()).all()


def test_the_values_of_submodules_are_read_and_reported():
    model = Body(network())
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    with higher.innerloop_ctx(model, inner) as (functional, steps):
        steps.step(loss(functional))
        after = baked_state_dict(functional)
        assert spec(functional) == spec(model)
        assert "orthogonal()" in str(report(functional))
        assert_feasible(functional)
        assert list(violations(functional)) == list(violations(model))
        weight = functional.layers[0].weight
        assert not torch.allclose(weight, model.layers[0].weight)
        assert torch.equal(weight, after["layers.0.weight"])


def test_the_gradient_is_that_of_finite_differences():
    torch.manual_seed(0)
    model = constrain(nn.Linear(3, 3), "weight", "positive_definite").double()
    x = torch.randn(4, 3, dtype=torch.float64)

    def after(bias):
        with torch.no_grad():
            model.bias.copy_(bias)
        inner = torch.optim.SGD(model.parameters(), lr=0.1)
        with higher.innerloop_ctx(model, inner, copy_initial_weights=False) as (functional, steps):
            steps.step(functional(x).square().mean())
            return functional(x).square().mean()

    start = torch.randn(3, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(after(start), [model.bias])
    h = 1e-6
    for i in range(3):
        up, down = start.clone(), start.clone()
        up[i] += h
        down[i] -= h
        quotient = (after(up) - after(down)).item() / (2 * h)
        torch.testing.assert_close(gradient[i].item(), quotient, rtol=1e-5, atol=1e-7)


class Affine(nn.Module):
    """Two tensors of one shape, so that to take one for the other is no error."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.randn(6))
        self.shift = nn.Parameter(torch.randn(6))

    def forward(self, x):
        return x * self.scale + self.shift


@pytest.mark.parametrize("path", ["scale", "shift"])
def test_parameters_are_given_in_the_order_of_the_functional_model(path):
    model = constrain(Affine(), path, "ball(radius=10)")
    functional = higher.monkeypatch(model, copy_initial_weights=False)
    x = torch.randn(4, 6)
    given = list(functional.parameters())
    output = functional(x, params=given)
    torch.testing.assert_close(output, model(x))
    gradients = torch.autograd.grad(output.square().mean(), given)
    model(x).square().mean().backward()
    output = functional(x, params=[p - 0.1 * g for p, g in zip(given, gradients, strict=True)])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.1 * parameter.grad
    torch.testing.assert_close(output, model(x))
