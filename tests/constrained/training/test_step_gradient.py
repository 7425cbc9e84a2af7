"""`Constraint.step_gradient` is applied once per step, to the gradient summed over all batches."""

import pytest
import torch
from torch import nn

from constrained import constrain
from constrained.training import post_step

SPECS = [
    "spectral_norm(bound=0.5)",
    "spectral_norm(bound=0.5, map='scale')",
    "l1_ball(radius=0.5)",
    "ball(radius=0.5, p=1)",
]
DOUBLE = torch.float64


def outside(shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)


def layer(spec, shape=(8, 6)):
    """A layer at the boundary of a set."""
    module = nn.Linear(*reversed(shape), bias=False, dtype=DOUBLE)
    module.weight.data = outside(shape)
    return constrain(module, "weight", spec)


def batches(count=3, features=6):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 10, features, generator=generator, dtype=DOUBLE)


def loss_of(module, x):
    """It leads across the boundary."""
    return (module(x) - x @ outside(original(module).shape).mT).square().sum()


def original(module):
    return next(module.parameters())


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam])
def test_batches_that_are_added_up_are_one_batch(spec, make, monkeypatch):
    one, several = layer(spec), layer(spec)
    for module, parts in ((one, [batches().flatten(0, 1)]), (several, batches())):
        optimizer = make(module.parameters(), lr=0.01)
        for _ in range(5):
            optimizer.zero_grad()
            for x in parts:
                loss_of(module, x).backward()
            optimizer.step()
    torch.testing.assert_close(several.weight, one.weight)
    # So the step was not made of the gradient as it is.
    plain = layer(spec)
    optimizer = make(plain.parameters(), lr=0.01)
    monkeypatch.setattr(post_step, "prepare_step", lambda tensor: None)
    for _ in range(5):
        optimizer.zero_grad()
        loss_of(plain, batches().flatten(0, 1)).backward()
        optimizer.step()
    assert (original(plain) - original(one)).abs().max() > 1e-4


@pytest.mark.parametrize("spec", SPECS)
def test_a_step_in_a_step_is_made_of_the_same_gradient(spec):
    class Outer(torch.optim.SGD):
        def __init__(self, params, **options):
            super().__init__(params, **options)
            self.inner = torch.optim.SGD(self.param_groups[0]["params"], **options)

        def step(self, closure=None):
            del closure
            self.inner.step()

    found = []
    for make in (torch.optim.SGD, Outer):
        module = layer(spec)
        optimizer = make(module.parameters(), lr=0.01)
        for _ in range(5):
            optimizer.zero_grad()
            loss_of(module, batches()[0]).backward()
            optimizer.step()
        found.append(module.weight.detach())
    torch.testing.assert_close(*found, rtol=0, atol=0)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("by_name", [False, True])
def test_a_closure_is_followed_by_it(spec, by_name):
    found = []
    for with_closure in (False, True):
        module = layer(spec)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.01)

        def closure(module=module, optimizer=optimizer):
            optimizer.zero_grad()
            loss = loss_of(module, batches()[0])
            loss.backward()
            return loss

        for _ in range(5):
            if with_closure:
                optimizer.step(**{"closure": closure}) if by_name else optimizer.step(closure)
            else:
                closure()
                optimizer.step()
        found.append(module.weight.detach())
    torch.testing.assert_close(*found, rtol=0, atol=0)


@pytest.mark.parametrize("spec", SPECS)
def test_memory_that_others_hold_is_written_and_not_replaced(spec):
    module = layer(spec)
    parameter = original(module)
    bucket = torch.zeros(2, *parameter.shape, dtype=DOUBLE)
    parameter.grad = bucket[1]
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    loss_of(module, batches()[0]).backward()
    before = bucket.clone()
    optimizer.step()
    assert parameter.grad.data_ptr() == bucket[1].data_ptr()
    assert not torch.equal(bucket[1], before[1])
    assert torch.equal(bucket[0], before[0])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("spec", [*SPECS, "symmetric | spectral_norm"])
def test_a_gradient_that_is_not_finite_stops_no_step(spec, value):
    module = layer(spec, (6, 6))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    for _ in range(2):
        original(module).grad = torch.full_like(original(module), value)
        optimizer.step()
    assert not original(module).isfinite().any()


@pytest.mark.parametrize("spec", SPECS)
def test_of_no_gradient_nothing_is_made(spec):
    module = layer(spec)
    before = module.weight.detach().clone()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    optimizer.step()
    original(module).grad = torch.zeros_like(original(module))
    optimizer.step()
    assert torch.equal(module.weight, before)


def test_a_view_asks_the_constraint_that_it_views():
    found = []
    for view in (None, "o i -> o (i)"):
        module = layer({"name": "spectral_norm", "bound": 0.5, **({"view": view} if view else {})})
        optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
        for x in batches():
            optimizer.zero_grad()
            loss_of(module, x).backward()
            optimizer.step()
        found.append(module.weight.detach().reshape(8, 6))
    torch.testing.assert_close(*found)


def test_directions_follow_the_parameter_in_a_product_too():
    spec = {"name": "product", "parts": ["spectral_norm(map='scale', bound=0.5)", "symmetric"]}
    module = layer({**spec, "dim": -2}, (12, 6))
    constants = [*module.parametrizations["weight"].buffers()]
    before = [t.clone() for t in constants]
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        (module.weight - outside((12, 6))).square().sum().backward()
        optimizer.step()
    assert constants and not any(map(torch.equal, constants, before))
