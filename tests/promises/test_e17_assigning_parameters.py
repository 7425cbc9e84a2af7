"""E17: a Parameter can be assigned to a constrained tensor; None and `del` are clear errors."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize as torchs
from torch.testing import assert_close

from tests.promises.counting import original
from tests.promises.foreign import Squash, squashed

torch_today = pytest.mark.torch_today

REFUSED = {
    "None": (lambda m: setattr(m, "weight", None), TypeError),
    "del": (lambda m: delattr(m, "weight"), RuntimeError),
    "get_parameter": (lambda m: m.get_parameter("weight"), AttributeError),
    "get_buffer": (lambda m: m.get_buffer("weight"), AttributeError),
    "register_parameter": (
        lambda m: m.register_parameter("weight", nn.Parameter(torch.ones(3, 3))),
        KeyError,
    ),
    "register_buffer": (lambda m: m.register_buffer("weight", torch.ones(3, 3)), KeyError),
}


def test_e17_a_parameter_is_assigned_and_the_original_keeps_its_identity(measured):
    m = squashed()
    kept, new = original(m), nn.Parameter(torch.full((3, 3), 0.5))
    m.weight = new
    assert original(m) is kept and "weight" not in m._parameters
    assert_close(m.weight.detach(), new.detach())
    measured("a Parameter is assigned; the original keeps its identity")


@torch_today
def test_e17_a_parameter_in_torch_today(measured):
    m = squashed(torchs)
    with pytest.raises(KeyError, match="already exists") as caught:
        m.weight = nn.Parameter(torch.full((3, 3), 0.5))
    measured(f"assigning a Parameter: {caught.type.__name__}")


@pytest.mark.parametrize("what", REFUSED)
def test_e17_what_is_refused_says_what_to_do(what, measured):
    m = squashed()
    act, error = REFUSED[what]
    before = m.weight.detach().clone()
    with pytest.raises(error, match="'weight'.*is parametrized.*(remove_param|original)") as caught:
        act(m)
    assert_close(m.weight.detach(), before)
    assert list(m._parameters) == ["bias"] and not m._buffers
    measured(f"{what}: {caught.type.__name__} that names the cure")


@torch_today
@pytest.mark.parametrize("what", REFUSED)
def test_e17_what_is_refused_in_torch_today(what):
    m = squashed(torchs)
    with pytest.raises((TypeError, AttributeError, KeyError)) as caught:
        REFUSED[what][0](m)
    assert "is parametrized" not in str(caught.value)


def test_e17_freezing():
    m = squashed()
    with pytest.raises(RuntimeError, match="leaf"):
        m.weight.requires_grad_(False)
    m.parametrizations.weight.requires_grad_(False)
    assert not m.weight.requires_grad and m.bias.requires_grad
    m.parametrizations.weight.requires_grad_(True)
    with torch.enable_grad():
        assert m.weight.requires_grad


def test_e17_the_gradient_is_that_of_the_original():
    m = squashed()
    m.weight.sum().backward()
    assert original(m).grad is not None
    with pytest.warns(UserWarning, match="not a leaf"):
        assert m.weight.grad is None


def test_e17_a_chain_is_named_by_its_originals():
    m = nn.Sequential(squashed())
    assert m.get_parameter("0.parametrizations.weight.original") is original(m[0])
    assert isinstance(m[0].parametrizations.weight[0], Squash)
