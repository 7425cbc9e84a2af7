"""E19: an error inside a parametrization is raised as it is."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize as torchs

import constrained.parametrize as ours
from tests.promises.foreign import FailsLater

torch_today = pytest.mark.torch_today


class Misspelt(nn.Module):
    def forward(self, x):
        return x.no_such_method()


def test_e19_an_attribute_error_inside_a_parametrization_is_shown():
    m = nn.Linear(3, 3)
    ours.register_parametrization(m, "weight", FailsLater())
    m.parametrizations.weight[0].broken = True
    with pytest.raises(RuntimeError, match="does_not_exist") as caught:
        _ = m.weight
    assert isinstance(caught.value.__cause__, AttributeError)
    assert "weight" in str(caught.value) and "FailsLater" in str(caught.value)
    with pytest.raises(RuntimeError, match="does_not_exist"):
        m(torch.ones(1, 3))
    m.parametrizations.weight[0].broken = False
    assert m.weight.shape == (3, 3)


@torch_today
def test_e19_in_torch_today():
    m = nn.Linear(3, 3)
    torchs.register_parametrization(m, "weight", FailsLater())
    m.parametrizations.weight[0].broken = True
    with pytest.raises(AttributeError, match="no attribute 'weight'"):
        _ = m.weight


def test_e19_other_errors_pass_unchanged():
    class Raises(nn.Module):
        fails = False

        def forward(self, x):
            if self.fails:
                raise ZeroDivisionError("mine")
            return x

    m = nn.Linear(3, 3)
    ours.register_parametrization(m, "weight", Raises())
    m.parametrizations.weight[0].fails = True
    with pytest.raises(ZeroDivisionError, match="mine"):
        _ = m.weight


def test_e19_on_registration_the_error_of_the_parametrization_is_seen():
    m = nn.Linear(3, 3)
    with pytest.raises(AttributeError, match="no_such_method"):
        ours.register_parametrization(m, "weight", Misspelt())
    assert type(m) is nn.Linear
