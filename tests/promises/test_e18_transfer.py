"""E18: `transfer_parametrizations_and_params` makes a real copy."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils import parametrize as torchs
from torch.testing import assert_close

import constrained.parametrize as ours
from constrained import constrain
from tests.promises.foreign import Scaled, Split, Squash

torch_today = pytest.mark.torch_today


def chain(P=ours):
    m = nn.Linear(3, 3)
    for parametrization in (Split(), Scaled(), Squash()):
        P.register_parametrization(m, "weight", parametrization)
    return m


def tensors(m):
    return {id(t) for t in (*m.parameters(), *m.buffers())}


SOURCES = {
    "chain": chain,
    "one original": lambda: ours.register_parametrization(nn.Linear(3, 3), "weight", Squash()),
    "constraint": lambda: constrain(nn.Linear(3, 3), "weight", "orthogonal"),
    "low rank": lambda: constrain(nn.Linear(3, 3), "weight", "low_rank(rank=1)"),
    "torch's chain": lambda: chain(torchs),
    "torch's orthogonal": lambda: parametrizations.orthogonal(nn.Linear(3, 3)),
    "torch's spectral_norm": lambda: parametrizations.spectral_norm(nn.Linear(3, 3)),
    "torch's weight_norm": lambda: parametrizations.weight_norm(nn.Linear(3, 3)),
}


@pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES)
def test_e18_the_copy_has_the_value_and_nothing_is_shared(make):
    """Also if the right inverse would refuse the target's own tensor, or writes state."""
    source, target = make().eval(), nn.Linear(3, 3).eval()
    value = source.weight.detach().clone()
    state = {k: v.clone() for k, v in source.state_dict().items()}
    ours.transfer_parametrizations_and_params(source, target)
    assert_close(target.weight.detach(), value)
    assert not tensors(source) & tensors(target)
    modules = [set(map(id, m.parametrizations.modules())) for m in (source, target)]
    assert not modules[0] & modules[1]
    with torch.no_grad():
        for tensor in (*target.parameters(), *target.buffers()):
            tensor.add_(1.0)
    ours.remove_parametrizations(target, "weight")
    assert_close(source.weight.detach(), value, rtol=0, atol=0)
    assert source.state_dict().keys() == state.keys()
    assert all(torch.equal(v, state[k]) for k, v in source.state_dict().items())


def check_removal_leaves_the_source(P):
    source, target = nn.Linear(3, 3), nn.Linear(3, 3)
    P.register_parametrization(source, "weight", Scaled())
    P.transfer_parametrizations_and_params(source, target)
    before = source.weight.detach().clone()
    P.remove_parametrizations(target, "weight")
    return float((source.weight.detach() / before).mean())


def test_e18_removal_on_the_target_leaves_the_source(measured):
    factor = check_removal_leaves_the_source(ours)
    measured(f"source weight times {factor:g} after removal on the target")
    assert factor == 1


@torch_today
def test_e18_removal_on_the_target_in_torch_today(measured):
    factor = check_removal_leaves_the_source(torchs)
    measured(f"source weight times {factor:g} after removal on the target")
    assert factor == 2


def test_e18_the_parameter_of_the_target_keeps_its_identity():
    source, target = SOURCES["one original"](), nn.Linear(3, 3)
    weight = target.weight
    optimizer = torch.optim.SGD(target.parameters(), lr=0.1)
    ours.transfer_parametrizations_and_params(source, target)
    assert target.parametrizations.weight.original is weight
    before = target.weight.detach().clone()
    target(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    assert not torch.equal(target.weight, before)


def test_e18_an_optimizer_of_the_target_is_warned():
    target = nn.Linear(3, 3)
    optimizer = torch.optim.SGD(target.parameters(), lr=0.1)
    ours.transfer_parametrizations_and_params(chain(), target)
    target(torch.ones(2, 3)).sum().backward()
    with pytest.warns(UserWarning, match="'weight'"):
        optimizer.step()


def test_e18_buffers():
    source, target = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    constrain(source, "running_var", "positive")
    ours.transfer_parametrizations_and_params(source, target)
    assert not list(target.parametrizations.parameters())
    bare = nn.Module()
    ours.transfer_parametrizations_and_params(source, bare)
    for m in (target, bare):
        assert_close(m.running_var, source.running_var)
        ours.remove_parametrizations(m, "running_var")
        assert "running_var" in m._buffers


def test_e18_ties_inside_a_module_are_copied():
    source = nn.Module()
    source.a = source.b = nn.Parameter(torch.rand(3))
    constrain(source, "a", "positive")
    target = ours.transfer_parametrizations_and_params(source, nn.Module())
    assert target.parametrizations.a is target.parametrizations.b
    assert len(list(target.parameters())) == 1
    assert_close(target.b, source.a)


def test_e18_a_frozen_source_and_the_training_flag():
    source = SOURCES["one original"]()
    source.parametrizations.weight.original.requires_grad_(False)
    target = ours.transfer_parametrizations_and_params(source, nn.Linear(3, 3).eval())
    assert not target.parametrizations.weight.original.requires_grad
    assert not target.parametrizations.weight[0].training and source.training


def test_e18_what_is_refused_changes_nothing():
    source = chain()
    ours.register_parametrization(source, "bias", Squash())
    for target, match in (
        (nn.Linear(3, 4), r"'weight' has the shape \(3, 3\) in Linear and \(4, 3\) in Linear"),
        (SOURCES["one original"](), "'weight' of Linear is parametrized already"),
    ):
        before = [(k, id(p)) for k, p in target.named_parameters()]
        with pytest.raises(ValueError, match=match):
            ours.transfer_parametrizations_and_params(source, target)
        assert [(k, id(p)) for k, p in target.named_parameters()] == before
    with pytest.raises(ValueError, match="no parametrized tensor 'nothing'"):
        ours.transfer_parametrizations_and_params(source, nn.Linear(3, 3), "nothing")
