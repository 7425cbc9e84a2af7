"""E24: dotted paths and functions work; a tensor that is None is a clear error."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize as torchs
from torch.testing import assert_close

import constrained.parametrize as ours
from tests.promises.foreign import Squash

torch_today = pytest.mark.torch_today


def test_e24_dotted_paths():
    m = nn.Sequential(nn.Sequential(nn.Linear(3, 3)))
    assert ours.register_parametrization(m, "0.0.weight", Squash()) is m
    assert ours.is_parametrized(m[0][0], "weight") and not ours.is_parametrized(m)
    assert ours.remove_parametrizations(m, "0.0.weight") is m
    assert type(m[0][0]) is nn.Linear
    for path in ("0.1.weight", "0.0.foo", "nothing.weight"):
        with pytest.raises(ValueError, match=path.rpartition(".")[2] if "foo" in path else path):
            ours.register_parametrization(m, path, Squash())


def test_e24_functions():
    m = nn.Linear(3, 3)
    before = m.weight.detach().clone()
    ours.register_parametrization(m, "weight", torch.tanh)
    ours.register_parametrization(m, "bias", lambda b: 2 * b)
    assert_close(m.weight.detach(), before.tanh())
    m(torch.ones(1, 3)).sum().backward()
    assert all(p.grad is not None for p in m.parameters())
    with pytest.raises(RuntimeError, match="right_inverse"):
        m.weight = before
    assert "tanh" in repr(m)


def test_e24_none_is_a_clear_error():
    m = nn.Linear(3, 3, bias=False)
    with pytest.raises(ValueError, match=r"'bias'.*None"):
        ours.register_parametrization(m, "bias", Squash())
    with pytest.raises(TypeError, match=r"function.*int"):
        ours.register_parametrization(m, "weight", 3)
    with pytest.raises(TypeError, match="NoneType"):
        ours.register_parametrization(m, "weight", None)
    assert type(m) is nn.Linear


@torch_today
def test_e24_in_torch_today():
    with pytest.raises(AttributeError):
        torchs.register_parametrization(nn.Linear(3, 3, bias=False), "bias", Squash())
    with pytest.raises(AttributeError):
        torchs.register_parametrization(nn.Linear(3, 3), "weight", torch.tanh)
    with pytest.raises(ValueError):
        torchs.register_parametrization(nn.Sequential(nn.Linear(3, 3)), "0.weight", Squash())
