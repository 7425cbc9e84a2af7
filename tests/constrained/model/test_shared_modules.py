"""A module that is registered under several names has one set of tensors, found by every name."""

import copy

import pytest
import torch
from torch import nn

import constrained.parametrize as ours
from constrained import baked_state_dict, constrain, release, report, spec, violations, writable


def shared():
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.Tanh(), layer)


def shared_and_tied():
    model = shared()
    model.append(nn.Linear(4, 4))
    model[3].weight = model[0].weight
    return model


@pytest.mark.parametrize("make", [shared, shared_and_tied])
@pytest.mark.parametrize("target", ["0.weight", "2.weight", "*.weight", "**.weight"])
def test_every_name_means_the_tensor(make, target):
    model = make()
    keys, names = list(model.state_dict()), [name for name, _ in model.named_parameters()]
    weight = model[0].weight
    constrain(model, target, "orthogonal")
    assert model[0] is model[2]
    changed = [name.replace("0.weight", "0.parametrizations.weight.original") for name in names]
    assert [name for name, _ in model.named_parameters()] == changed
    assert sum(p is weight for p in model.parameters()) == 1
    assert spec(model) == {"0.weight": {"name": "orthogonal"}}
    assert list(violations(model)) == [row.path for row in report(model).rows] == ["0.weight"]
    # As torch has them: under both names.
    saved = [key for key in keys if key.endswith("weight")]
    inside = {key.replace("weight", "parametrizations.weight.original") for key in saved}
    assert {key for key in model.state_dict() if "original" in key} == inside
    assert list(baked_state_dict(model)) == keys
    loaded = make()
    loaded.load_state_dict(baked_state_dict(model))
    again = constrain(make(), spec(model))
    for state in (model.state_dict(), baked_state_dict(model), loaded.state_dict()):
        again.load_state_dict(state)
        torch.testing.assert_close(again[2].weight, model[0].weight)
    release(model, target)
    assert type(model[0]) is nn.Linear
    assert list(model.state_dict()) == keys
    assert [name for name, _ in model.named_parameters()] == names


def test_it_trains():
    model = constrain(shared(), "2.weight", "orthogonal")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model[2].weight.detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()
    assert not torch.equal(model[0].weight, before)
    assert max(violations(model).values()) < 1e-5
    twin = copy.deepcopy(model)
    assert twin[0] is twin[2]
    with writable(model):
        nn.init.normal_(model[2].weight)
    assert max(violations(model).values()) < 1e-5


def test_an_optimizer_is_told_once():
    model = shared()
    optimizer = torch.optim.Adam(model.parameters())
    constrain(model, "2.weight", "low_rank(rank=2)", optimizer=optimizer)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert list(map(id, held)) == list(map(id, model.parameters()))


def test_two_names_cannot_ask_for_different_things():
    with pytest.raises(ValueError, match="one tied tensor"):
        constrain(shared(), {"0.weight": "orthogonal", "2.weight": "sphere"})


def test_a_lazy_module():
    layer = nn.LazyLinear(4)
    model = constrain(nn.Sequential(layer, layer), "1.weight", "orthogonal")
    model(torch.ones(2, 4))
    assert list(violations(model)) == ["0.weight"]
    waits = constrain(nn.Sequential(layer := nn.LazyLinear(4), layer), "**.weight", "orthogonal")
    release(waits)
    waits(torch.ones(2, 4))
    assert violations(waits) == {}


def test_the_engine_by_either_name():
    model = shared()
    ours.register_parametrization(model, "2.weight", torch.nn.Identity())
    assert ours.is_parametrized(model[0], "weight")
    ours.remove_parametrizations(model, "0.weight")
    assert type(model[2]) is nn.Linear


class Head(nn.Module):
    """A module that has a tensor of a layer in it, as the heads of masked language models."""

    def __init__(self):
        super().__init__()
        self.decoder = nn.Linear(4, 4)
        self.decoder.bias = self.bias = nn.Parameter(torch.zeros(4))


def test_a_layer_inside_of_another_owner_has_its_names_while_values_are_written():
    m = constrain(Head(), "bias", "interval(-1, 1)")
    plain = [name for name, _ in Head().named_parameters(remove_duplicate=False)]
    with torch.no_grad(), writable(m):
        found = dict(m.named_parameters(remove_duplicate=False))
        for p in found.values():
            p.fill_(0.5)
    assert sorted(found) == sorted(plain)
    assert m.bias is m.decoder.bias and (m.bias == 0.5).all()
