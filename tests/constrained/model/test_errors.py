"""The errors of an assignment, and of a write that is lost, name the tensor by its path."""

import pytest
import torch
from torch import nn

import constrained.parametrize as P
from constrained import InfeasibleError, constrain, release, spec, violations, writable


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        constrain(self, "layers.*.weight", "interval(low=-1, high=1)")

    def forward(self, x):
        return self.layers(x)

    def start(self, value):
        self.layers[1].weight = value


OUTSIDE = {
    "a value out of the set": (lambda: torch.full((3, 3), 5.0), InfeasibleError),
    "a parameter out of the set": (lambda: nn.Parameter(torch.full((3, 3), 5.0)), InfeasibleError),
    "a value that is not finite": (lambda: torch.full((3, 3), torch.nan), ValueError),
    "another shape": (lambda: torch.zeros(2, 2), ValueError),
    "no tensor": (lambda: "x", TypeError),
}


@pytest.mark.parametrize("what", OUTSIDE)
def test_an_assignment_that_is_refused(what):
    model, (value, kind) = Model(), OUTSIDE[what]
    before = model.layers[1].weight.detach().clone()
    with pytest.raises(kind, match=r"^'weight': (?!'weight')"):
        model.layers[1].weight = value()
    with pytest.raises(kind, match=r"^'layers.1.weight': (?!'layers)"):
        model.start(value())
    assert torch.equal(model.layers[1].weight, before)


def test_what_is_refused_inside_and_at_the_end_of_writable():
    model = Model()
    before = model.layers[1].weight.detach().clone()
    with pytest.raises(ValueError, match=r"^'layers.1.weight': .* shape"), writable(model):
        model.layers[1].weight = torch.zeros(2, 2)
    with pytest.raises(ValueError, match=r"^'layers.1.weight': .* finite"), writable(model):
        model.layers[1].weight.data.fill_(torch.nan)
    assert torch.equal(model.layers[1].weight, before)


def test_each_write_that_is_lost_is_named_once_and_the_model_is_as_it_was():
    model, x = Model(), torch.ones(1, 3)
    expected, state = model(x), {k: v.clone() for k, v in model.state_dict().items()}
    for layer in model.layers:
        layer.weight.data.mul_(0.5)
    for i in range(2):
        with pytest.raises(RuntimeError, match=rf"^'layers.{i}.weight' .*as it was.*writable"):
            model(x)
    assert torch.equal(model(x), expected)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_the_name_alone_where_no_other_module_is_at_work():
    model = Model()
    model.layers[0].weight.data.mul_(0.5)
    with pytest.raises(RuntimeError, match=r"^'weight' is computed by"):
        _ = model.layers[0].weight


class Refusing(nn.Module):
    def forward(self, X):
        return X

    def right_inverse(self, X):
        if bool((X < 0).any()):
            raise KindOfItsOwn("of its own", 3)
        return X


class KindOfItsOwn(ValueError):
    def __init__(self, text, number):
        super().__init__(text)
        self.number = number


def test_an_error_of_a_kind_of_its_own_stays_what_it_is():
    layer = nn.Linear(2, 2)
    nn.init.ones_(layer.weight)
    P.register_parametrization(layer, "weight", Refusing())
    with pytest.raises(KindOfItsOwn, match="^of its own$") as caught:
        layer.weight = torch.full((2, 2), -1.0)
    assert caught.value.number == 3 and caught.value.__cause__ is None


@pytest.mark.parametrize("constrains", [True, False])
def test_who_replaces_a_tensor_is_told_what_makes_it_plain(constrains):
    layer = nn.Linear(2, 2)
    if constrains:
        constrain(layer, "weight", "interval(-3, 3)")
        cure = r"constrained\.release\(module, 'weight'\)"
    else:
        P.register_parametrization(layer, "weight", nn.Identity())
        cure = r"remove_parametrizations\(module, 'weight'\)"
    for act, kind in (
        (lambda: delattr(layer, "weight"), RuntimeError),
        (lambda: setattr(layer, "weight", None), TypeError),
        (lambda: layer.register_parameter("weight", None), KeyError),
    ):
        with pytest.raises(kind, match=cure):
            act()
    if constrains:
        assert violations(layer) and spec(layer)
        release(layer, "weight")
        del layer.weight
