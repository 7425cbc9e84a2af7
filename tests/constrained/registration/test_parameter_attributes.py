"""What a parameter brings with it: attributes that users gave it, and its gradient."""

import pytest
import torch
from torch import nn

import constrained.parametrize as ours
from constrained import constrain, get, names, release, writable
from constrained.model import changes as change
from constrained.registration.install import install
from tests.promises.catalogue import admissible, plain


def noted(name):
    arguments, event = get(name).examples[0]
    shape = admissible(name, arguments, event, [(4, 4)])[0]
    layer = plain(shape)
    layer.weight._no_weight_decay = True
    layer.weight.sum_of_gradients = torch.zeros(shape)
    layer.weight.grad = torch.ones(shape)
    return layer, get(name)(**arguments)


@pytest.mark.parametrize("name", names())
def test_attributes_and_gradients(name):
    layer, constraint = noted(name)
    weight = layer.weight
    constrain(layer, "weight", constraint)
    trained = [*layer.parametrizations.weight.parameters(recurse=False)]
    assert trained and all(p._no_weight_decay for p in trained)
    assert all(p is weight or not hasattr(p, "sum_of_gradients") for p in trained)
    assert all(p.grad is None or p.grad.shape == p.shape for p in trained)
    assert weight.grad is None or weight.shape == weight.grad.shape
    with writable(layer):
        assert layer.weight._no_weight_decay
    layer.weight.square().sum().backward()
    release(layer)
    assert layer.weight._no_weight_decay
    assert layer.weight.grad is None or layer.weight.grad.shape == layer.weight.shape
    layer.weight.square().sum().backward()


def test_a_gradient_of_another_shape_goes():
    layer = nn.Linear(4, 4)
    weight = layer.weight
    weight.grad = torch.ones(4, 4)
    constrain(layer, "weight", "lorentz")
    assert layer.parametrizations.weight.original is weight and weight.grad is None
    weight.grad = torch.ones(4, 3)
    release(layer)
    assert layer.weight is weight and weight.grad is None


def test_it_comes_back_after_an_error(monkeypatch):
    model = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    gradient = model["a"].weight.grad = torch.ones(4, 4)
    installed = []

    def fails_the_second_time(*args):
        installed.append(args)
        if len(installed) == 2:
            raise KeyboardInterrupt
        return install(*args)

    monkeypatch.setattr(change, "install", fails_the_second_time)
    with pytest.raises(KeyboardInterrupt):
        constrain(model, "*.weight", "lorentz")
    assert model["a"].weight.shape == (4, 4) and model["a"].weight.grad is gradient


@pytest.mark.parametrize("swap", [False, True])
def test_attributes_where_tensors_are_swapped(swap):
    torch.__future__.set_swap_module_params_on_conversion(swap)
    try:
        layer, constraint = noted("lorentz")
        constrain(layer, "weight", constraint)
        assert layer.parametrizations.weight.original._no_weight_decay
        release(layer)
        assert layer.weight._no_weight_decay
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


class Halves(nn.Module):
    def forward(self, a, b):
        return torch.cat([a, b])

    def right_inverse(self, value):
        return value[:2], value[2:]


def test_under_the_engine_too():
    layer = nn.Linear(3, 4)
    layer.weight._no_weight_decay = layer.weight.group = "slow"
    ours.register_parametrization(layer, "weight", Halves())
    first, second = layer.parametrizations.weight.originals()
    assert first.group == second.group == "slow"
    # What is said of one of them is not said of their tensor.
    del second.group
    ours.remove_parametrizations(layer, "weight")
    assert layer.weight._no_weight_decay and not hasattr(layer.weight, "group")
