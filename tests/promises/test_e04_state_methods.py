"""E04: a module's own state methods are used; a recurrent layer copies after training."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize as torchs
from torch.testing import assert_close

import constrained.parametrize as ours
from tests.promises.copies import COPIES, pickled
from tests.promises.counting import original
from tests.promises.foreign import Squash

torch_today = pytest.mark.torch_today


class Locked(nn.Linear):
    """A module that leaves something out of its state, and counts how often it is loaded."""

    def __init__(self):
        super().__init__(3, 3)
        self.lock = __import__("threading").Lock()

    def __getstate__(self):
        state = dict(self.__dict__)
        del state["lock"]
        return state

    def __setstate__(self, state):
        super().__setstate__(state)
        self.lock = "new"


class Tupled(nn.Linear):
    """A module whose state is not a dictionary."""

    def __init__(self):
        super().__init__(3, 3)

    def __getstate__(self):
        return dict(self.__dict__), "more"

    def __setstate__(self, state):
        super().__setstate__(state[0])
        self.__dict__["more"] = state[1]


@pytest.mark.parametrize("how", COPIES)
def test_e04_the_modules_own_state_methods_are_used(how):
    for cls, attribute, value in [(Locked, "lock", "new"), (Tupled, "more", "more")]:
        m = ours.register_parametrization(cls(), "weight", Squash())
        loaded = how(m)
        assert getattr(loaded, attribute) == value
        assert_close(loaded.weight, m.weight)


def test_e04_deepcopy_of_a_recurrent_layer_after_training():
    m = ours.register_parametrization(nn.LSTM(3, 3, 2), "weight_hh_l1", Squash())
    x = torch.randn(4, 3)
    m(x)[0].sum().backward()
    twin = copy.deepcopy(m)
    assert_close(twin(x)[0], m(x)[0])
    with torch.no_grad():
        original(twin, "weight_hh_l1").zero_()
    assert not torch.allclose(twin(x)[0], m(x)[0])


class Plain(nn.Linear):
    """A module whose own copy method makes a new module."""

    def __deepcopy__(self, memo):
        memo[id(self)] = twin = Plain(3, 3)
        return twin


def test_e04_the_modules_own_deepcopy_is_used():
    m = ours.register_parametrization(Plain(3, 3), "weight", Squash())
    assert type(copy.deepcopy(m)) is Plain
    assert ours.is_parametrized(m)


@pytest.mark.parametrize("how", [copy.deepcopy, pickled])
@pytest.mark.parametrize("make", [nn.RNN, nn.LSTM, nn.GRU])
def test_e04_recurrent_layers_after_training(make, how, measured):
    m = ours.register_parametrization(make(3, 3), "weight_hh_l0", Squash())
    x = torch.randn(4, 3)
    m(x)[0].sum().backward()
    twin = how(m)
    assert_close(twin(x)[0], m(x)[0])
    measured(f"{make.__name__} copies after a training forward")


@torch_today
def test_e04_in_torch_today(measured):
    m = torchs.register_parametrization(Locked(), "weight", Squash())
    with pytest.raises(TypeError, match="cannot pickle") as error:
        copy.deepcopy(m)
    measured(f"deepcopy: {error.value}")


@torch_today
def test_e04_recurrent_layers_in_torch_today():
    m = torchs.register_parametrization(nn.LSTM(3, 3), "weight_hh_l0", Squash())
    m(torch.randn(4, 3))[0].sum().backward()
    with pytest.raises(RuntimeError, match="created explicitly by the user"):
        copy.deepcopy(m)
