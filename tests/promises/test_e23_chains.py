"""E23: chains of several tensors work, or are refused at registration."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations as torchs_own
from torch.testing import assert_close

import constrained.parametrize as ours
from constrained import constrain
from constrained.registration.from_torch import convert_from_torch
from tests.promises.foreign import Scaled, Split, Squash
from tests.promises.test_e21_atomicity import check_same, snapshot

torch_today = pytest.mark.torch_today

NAMES = ("weight_norm", "spectral_norm", "orthogonal")
PAIRS = list(itertools.product(NAMES, NAMES))


def outcome(first, second, engine):
    """The outcome of registering one of torch's parametrizations over another, on an engine."""
    m = getattr(torchs_own, first)(nn.Linear(3, 3))
    if engine == "ours":
        convert_from_torch(m)
    before = snapshot(m)
    try:
        getattr(torchs_own, second)(m)
    except ValueError as error:
        check_same(m, before)
        assert len(m.parametrizations.weight) == 1
        return f"refused: {error}"
    try:
        m(torch.ones(1, 3)).sum().backward()
    except TypeError:
        return "fails at each read"
    assert all(p.grad is not None for p in m.parameters())
    return "works"


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_e23_each_pair_works_or_is_refused(first, second, measured):
    found = outcome(first, second, "ours")
    measured(f"{second} over {first}: {found.partition(':')[0]}")
    if second == "weight_norm":
        assert found.startswith("refused: 'weight' is parametrized by _")
        assert "register it first, on the plain tensor, and the others after it" in found
    else:
        assert found == "works"


@torch_today
@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_e23_pairs_in_torch_today(first, second, measured):
    found = outcome(first, second, "torch")
    measured(f"{second} over {first}: {found}")
    assert found == ("works" if second == "spectral_norm" else "fails at each read")


def test_e23_orthogonal_over_a_constraint_starts_at_its_value():
    m = constrain(nn.Linear(3, 3), "weight", "symmetric")
    torchs_own.orthogonal(m)
    weight = m.weight
    assert_close(weight @ weight.mT, torch.eye(3), atol=1e-5, rtol=0)
    original = m.parametrizations.weight.original
    optimizer = torch.optim.SGD(m.parameters(), lr=0.1)
    before = original.detach().clone()
    m(torch.randn(4, 3)).pow(3).sum().backward()
    optimizer.step()
    assert not torch.equal(original, before)
    assert_close(m.weight @ m.weight.mT, torch.eye(3), atol=1e-5, rtol=0)


class Stateful(nn.Module):
    """Ready once its right inverse has seen a value."""

    base = None

    def forward(self, x):
        return self.base + x

    def right_inverse(self, y):
        self.base = y.clone()
        return torch.zeros_like(y)


@pytest.mark.parametrize("unsafe", [False, True])
def test_e23_a_right_inverse_is_shown_the_present_value(unsafe):
    m = ours.register_parametrization(nn.Linear(3, 3), "weight", Squash())
    value = m.weight.detach().clone()
    ours.register_parametrization(m, "weight", Stateful(), unsafe=unsafe)
    shown = m.parametrizations.weight[1].base
    assert_close(shown if unsafe else shown / 2, value)
    m.weight.sum().backward()


def test_e23_several_tensors_come_first_and_others_after():
    m = ours.register_parametrization(nn.Linear(3, 3), "weight", Split())
    ours.register_parametrization(m, "weight", Scaled())
    ours.register_parametrization(m, "weight", Squash())
    m.weight = (new := torch.rand(3, 3) / 2)
    assert_close(m.weight.detach(), new)
    m.weight.sum().backward()
    assert all(p.grad is not None for p in m.parametrizations.parameters())


@pytest.mark.parametrize("unsafe", [False, True])
@pytest.mark.parametrize("first", [Squash, Split])
def test_e23_several_tensors_after_others_are_refused(unsafe, first):
    m = ours.register_parametrization(nn.Linear(3, 3), "weight", first())
    before = snapshot(m)
    with pytest.raises(ValueError, match=f"by {first.__name__} already, and Split cannot come"):
        ours.register_parametrization(m, "weight", Split(), unsafe=unsafe)
    check_same(m, before)
    assert len(m.parametrizations.weight) == 1 and not m.parametrizations.weight.unsafe
    m.weight.sum().backward()


def test_e23_a_wrong_signature_is_refused():
    class TakesTwo(nn.Module):
        def forward(self, a, b):
            return a + b

    m = ours.register_parametrization(nn.Linear(3, 3), "weight", Squash())
    with pytest.raises(ValueError, match="TakesTwo cannot come after that: it fails"):
        ours.register_parametrization(m, "weight", TakesTwo(), unsafe=True)
    assert len(m.parametrizations.weight) == 1


def test_e23_looking_moves_no_state():
    """Appending advances neither a power iteration nor a random number generator."""
    m = torchs_own.spectral_norm(nn.Linear(3, 3))
    convert_from_torch(m)
    state = {k: v.clone() for k, v in m.state_dict().items()}
    random = torch.get_rng_state()
    ours.register_parametrization(m, "weight", nn.Dropout(0.5), unsafe=True)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(v, state[k]) for k, v in m.state_dict().items())
    assert all(x.training for x in m.modules())


def test_e23_appended_over_a_nested_parametrization():
    m = ours.register_parametrization(nn.Linear(3, 3), "weight", Squash())
    ours.register_parametrization(m.parametrizations.weight, "original", Squash())
    ours.register_parametrization(m, "weight", Scaled())
    assert "parametrizations.weight.1.gain" in m.state_dict()
    inner = m.parametrizations.weight.parametrizations.original.original
    assert_close(m.weight, 2 * inner.tanh().tanh())
