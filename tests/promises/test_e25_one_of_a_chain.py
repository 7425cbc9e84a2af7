"""E25: one element of a chain can be removed."""

import inspect

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize as torchs
from torch.testing import assert_close

import constrained.parametrize as ours
from constrained import InfeasibleError, constrain
from tests.promises.foreign import Scaled, Split, Squash
from tests.promises.test_e21_atomicity import check_same, snapshot

torch_today = pytest.mark.torch_today


class Shifted(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("shift", torch.tensor(0.1))

    def forward(self, x):
        return x + self.shift

    def right_inverse(self, y):
        return y - self.shift


def chain(*parametrizations):
    m = nn.Linear(3, 3)
    for parametrization in parametrizations:
        ours.register_parametrization(m, "weight", parametrization)
    return m


@pytest.mark.parametrize("first", [Split, Scaled])
@pytest.mark.parametrize("index", [0, 1, 2, -1, -2, -3])
def test_e25_the_value_stays(index, first, measured):
    parts = [first(), Shifted(), Squash()]
    m = chain(*parts)
    value = m.weight.detach().clone()
    assert ours.remove_parametrizations(m, "weight", index=index) is m
    del parts[index]
    assert [*m.parametrizations.weight.children()] == parts
    moved = float((m.weight.detach() - value).abs().max())
    measured(f"the value moves by at most {moved:.0e}")
    assert moved < 1e-6
    rest = m.parametrizations.weight.originals()
    for part in parts:
        rest = (part(*rest),)
    assert_close(m.weight, rest[0])
    m.weight.sum().backward()
    assert all(p.grad is not None for p in m.parametrizations.parameters())
    m.weight = value * 0.9
    assert_close(m.weight.detach(), value * 0.9)


@pytest.mark.parametrize("first", [Split, Scaled])
@pytest.mark.parametrize("index", [0, 1, 2])
def test_e25_the_originals_stay(index, first):
    parts = [first(), Shifted(), Squash()]
    m = chain(*parts)
    originals = m.parametrizations.weight.originals()
    before = [t.detach().clone() for t in originals]
    if index == 0 and first is Split:
        state = snapshot(m)
        with pytest.raises(ValueError, match="only Split, which is to be removed"):
            ours.remove_parametrizations(m, "weight", leave_parametrized=False, index=index)
        check_same(m, state)
        return
    ours.remove_parametrizations(m, "weight", leave_parametrized=False, index=index)
    del parts[index]
    now = m.parametrizations.weight.originals()
    assert all(a is b for a, b in zip(now, originals, strict=True))
    value = tuple(before)
    for part in parts:
        value = (part(*value),)
    assert_close(m.weight.detach(), value[0])


@torch_today
def test_e25_in_torch_today(measured):
    measured("no argument for it")
    assert "index" not in inspect.signature(torchs.remove_parametrizations).parameters


def test_e25_state_dicts_are_numbered_anew():
    m = chain(Split(), Shifted(), Scaled())
    ours.remove_parametrizations(m, "weight", index=1)
    assert set(m.state_dict()) == {
        "bias",
        "parametrizations.weight.original0",
        "parametrizations.weight.original1",
        "parametrizations.weight.1.gain",
    }
    ours.remove_parametrizations(m, "weight", index=0)
    assert set(m.state_dict()) == {
        "bias",
        "parametrizations.weight.original",
        "parametrizations.weight.0.gain",
    }
    fresh = chain(Scaled())
    fresh.load_state_dict(m.state_dict())
    assert_close(fresh.weight, m.weight)


def test_e25_removing_the_only_one_removes_all():
    for leave in (True, False):
        m = chain(Scaled())
        expected = m.weight if leave else m.parametrizations.weight.original
        expected = expected.detach().clone()
        ours.remove_parametrizations(m, "weight", leave, index=-1)
        assert type(m) is nn.Linear and isinstance(m.weight, nn.Parameter)
        assert_close(m.weight.detach(), expected)


def test_e25_an_original_keeps_its_identity_where_there_is_one():
    m = nn.Linear(3, 3)
    weight = m.weight
    for parametrization in (Scaled(), Shifted(), Squash()):
        ours.register_parametrization(m, "weight", parametrization)
    for _ in range(2):
        ours.remove_parametrizations(m, "weight", index=0)
        assert m.parametrizations.weight.original is weight
    ours.remove_parametrizations(m, "weight", index=0)
    assert m.weight is weight


@pytest.mark.parametrize("requires_grad", [True, False])
def test_e25_buffers_and_frozen_parameters_stay_what_they_are(requires_grad):
    m = nn.Linear(3, 3)
    m.weight.requires_grad_(requires_grad)
    m.register_buffer("state", torch.rand(3, 3) / 2, persistent=False)
    for name in ("weight", "state"):
        for parametrization in (Split(), Scaled()):
            ours.register_parametrization(m, name, parametrization)
        with torch.no_grad():
            ours.remove_parametrizations(m, name, index=0)
    assert isinstance(m.parametrizations.weight.original, nn.Parameter)
    assert m.parametrizations.weight.original.requires_grad is requires_grad
    assert "original" in m.parametrizations.state._buffers
    assert not any(k.endswith("state.original") for k in m.state_dict())
    ours.remove_parametrizations(m, "state")
    assert "state" in m._buffers and "state" not in m.state_dict()


def test_e25_a_value_outside_of_what_is_left_is_refused():
    m = constrain(nn.Linear(3, 3), "weight", "orthogonal")
    ours.register_parametrization(m, "weight", Scaled())
    before = snapshot(m)
    with pytest.raises(InfeasibleError, match="'weight' cannot keep its value without Scaled"):
        ours.remove_parametrizations(m, "weight", index=1)
    check_same(m, before)
    ours.remove_parametrizations(m, "weight", leave_parametrized=False, index=1)
    assert_close(m.weight @ m.weight.mT, torch.eye(3), atol=1e-5, rtol=0)


@pytest.mark.parametrize("index", [0, 1])
def test_e25_without_a_right_inverse_the_value_cannot_stay(index):
    m = chain(nn.Tanh(), nn.Sigmoid())
    before = snapshot(m)
    with pytest.raises(RuntimeError, match=r"does not implement right_inverse.*leave_parametrized"):
        ours.remove_parametrizations(m, "weight", index=index)
    check_same(m, before)
    assert len(m.parametrizations.weight) == 2
    ours.remove_parametrizations(m, "weight", leave_parametrized=False, index=index)
    assert len(m.parametrizations.weight) == 1


@pytest.mark.parametrize("index", [2, -3, 100])
def test_e25_a_bad_index(index):
    m = chain(Scaled(), Squash())
    before = snapshot(m)
    with pytest.raises(IndexError, match=rf"'weight' has 2 .* none at index {index}"):
        ours.remove_parametrizations(m, "weight", index=index)
    for wrong in (True, 1.0, "0"):
        with pytest.raises(TypeError, match="must be an integer"):
            ours.remove_parametrizations(m, "weight", index=wrong)
    check_same(m, before)
    assert len(m.parametrizations.weight) == 2


def test_e25_ties_hold():
    m = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    m[1].weight = m[0].weight
    ours.register_parametrization(m, "0.weight", Split())
    ours.register_parametrization(m, "0.weight", Scaled())
    ours.remove_parametrizations(m, "1.weight", index=0)
    assert m[0].parametrizations.weight is m[1].parametrizations.weight
    assert torch.equal(m[0].weight, m[1].weight)


def test_e25_torchs_own_chains():
    m = nn.Linear(3, 3)
    for parametrization in (Scaled(), Squash()):
        torchs.register_parametrization(m, "weight", parametrization)
    value = m.weight.detach().clone()
    ours.remove_parametrizations(m, "weight", index=0)
    assert_close(m.weight.detach(), value)


def test_e25_kept_values_are_forgotten():
    m = constrain(nn.Linear(3, 3), "weight", "symmetric")
    ours.register_parametrization(m, "weight", Scaled())
    with ours.cached():
        before = m.weight.detach().clone()
        ours.remove_parametrizations(m, "weight", leave_parametrized=False, index=1)
        assert_close(m.weight.detach(), before / 2)
    first = constrain(nn.Linear(3, 3), "weight", "orthogonal")
    ours.register_parametrization(first, "weight", Scaled())
    ours.remove_parametrizations(first, "weight", index=0)
    # The constraint whose parameters were made canonical has been removed.
    first.weight.sum().backward()
    torch.optim.SGD(first.parameters(), lr=0.1).step()
    assert_close(first.weight, 2 * first.parametrizations.weight.original)
