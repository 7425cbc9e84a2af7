"""Tying to constrained tensors, and what tools that look for tied tensors find."""

import copy
import gc
import pickle

import pytest
import torch
from torch import nn

from constrained import constrain, spec, writable
from constrained.parametrized.parametrizations import lists_of

SPECS = ["sphere", "orthogonal", "low_rank(rank=2)", "positive"]


def model():
    return nn.ModuleDict({"a": nn.Embedding(4, 3), "b": nn.Linear(3, 4), "c": nn.Linear(3, 4)})


@pytest.mark.parametrize("constraint", SPECS)
@pytest.mark.parametrize("written", [False, True])
def test_tied_inside_of_writable(constraint, written):
    m = constrain(model(), "a.weight", constraint)
    before = list(m["a"].parametrizations.weight.parameters())
    value = m["a"].weight.detach().clone()
    with writable(m):
        if written:
            nn.init.uniform_(m["a"].weight, 0.5, 1.0)
        m["b"].weight = m["a"].weight
    assert m["a"].parametrizations.weight is m["b"].parametrizations.weight
    assert torch.equal(m["a"].weight, m["b"].weight)
    assert written is not torch.equal(m["a"].weight, value)
    after = list(m["a"].parametrizations.weight.parameters())
    assert all(p is q for p, q in zip(before, after, strict=True))
    assert len(list(m.parameters())) == len(before) + 3
    m["b"](torch.ones(1, 3)).sum().backward()
    assert all(p.grad is not None for p in before)


def test_tied_again_nothing_changes():
    m = model()
    m["b"].weight = m["a"].weight
    constrain(m, "a.weight", "sphere")
    found, original = lists_of(m["a"])["weight"], m["a"].parametrizations.weight.original
    version = original._version
    with writable(m):
        m["b"].weight = m["a"].weight
    assert lists_of(m["a"])["weight"] is lists_of(m["b"])["weight"] is found
    assert m["a"].parametrizations.weight.original is original
    assert original._version == version


def test_a_tie_that_no_module_can_hold():
    m = constrain(model(), "a.weight", "sphere")
    m["b"].parametrizations = "mine"
    with pytest.raises(ValueError, match="attribute 'parametrizations' of its own"), writable(m):
        m["b"].weight = m["a"].weight


@pytest.mark.parametrize("constraint", SPECS)
def test_all_names_are_listed_inside_of_writable(constraint):
    plain = model()
    plain["b"].weight = plain["a"].weight
    names = {name for name, _ in plain.named_parameters(remove_duplicate=False)}
    constrain(plain, {"a.weight": constraint, "c.bias": "sphere"})
    with writable(plain):
        listed = dict(plain.named_parameters(remove_duplicate=False))
        assert listed.keys() == names
        assert listed["a.weight"] is listed["b.weight"]
    outside = {name for name, _ in plain.named_parameters(remove_duplicate=False)}
    assert outside - names == {name for name in outside if "parametrizations" in name}


def test_what_is_noted_at_all_originals_is_noted_at_what_stands_in_for_them():
    layer = constrain(nn.Linear(4, 4), "weight", "low_rank(rank=2)")
    first, second = layer.parametrizations.weight.parameters()
    first.is_initialised = second.is_initialised = True
    first.is_mine = True
    with writable(layer):
        assert layer.weight.is_initialised
        assert not hasattr(layer.weight, "is_mine")


class TestWhatTransformersAsksFor:
    """Which tensors are tied to others, so that each is saved once."""

    @staticmethod
    def asked(m):
        return {
            f"{prefix}.{key}"
            for prefix, module in m.named_modules()
            for key in getattr(module, "_tied_weights_keys", None) or ()
        }

    @pytest.mark.parametrize("constraint", SPECS)
    @pytest.mark.parametrize("copied", [lambda m: m, copy.deepcopy, "pickle"])
    def test_the_second_owner(self, constraint, copied):
        m = model()
        m["b"].weight = m["a"].weight
        constrain(m, {"b.weight": constraint, "c.weight": constraint})
        m = pickle.loads(pickle.dumps(m)) if copied == "pickle" else copied(m)
        twice = {key for key in m.state_dict() if key.startswith("b.parametrizations.weight.")}
        assert twice
        assert self.asked(m) == twice

    def test_nothing_is_tied_any_more(self):
        m = model()
        m["b"].weight = m["a"].weight
        constrain(m, "a.weight", "sphere")
        del m["a"]
        gc.collect()
        assert spec(m).keys() == {"b.weight"}
        assert self.asked(m) == set()


def test_a_tie_is_made_although_the_block_fails():
    m = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    constrain(m, "b.weight", "orthogonal")
    before = m["b"].weight.detach().clone()
    with pytest.raises(KeyError), writable(m):
        m["a"].weight = m["b"].weight
        raise KeyError
    torch.testing.assert_close(m["a"].weight, before)
    assert m["a"].weight is m["b"].weight


def test_values_are_as_they_were_where_nobody_can_hold_a_tie():
    m = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    m["a"].parametrizations = nn.Linear(1, 1)
    constrain(m, "b.weight", "positive", init="sample")
    before = m["b"].weight.detach().clone()
    with pytest.raises(ValueError, match="attribute 'parametrizations' of its own"), writable(m):
        m["a"].weight = m["b"].weight
        with torch.no_grad():
            m["b"].weight.fill_(2)
    assert torch.equal(m["b"].weight, before)
