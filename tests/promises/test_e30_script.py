"""E30: `jit.script` is refused at once, with an error that names the alternative."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize as torchs
from torch.testing import assert_close

import constrained.parametrize as ours
from constrained import constrain, release
from tests.promises.foreign import Squash

torch_today = pytest.mark.torch_today
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore::torch.jit.TracerWarning")


def model():
    m = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Sequential(nn.Linear(3, 3)))
    return constrain(m, "2.0.weight", "orthogonal")


@pytest.mark.parametrize("part", [lambda m: m, lambda m: m[2][0]], ids=["model", "module"])
def test_e30_script_is_refused_with_the_cure(part, measured):
    m = model()
    state = copy.deepcopy(m.state_dict())
    with pytest.raises(RuntimeError) as caught:
        torch.jit.script(part(m))
    assert str(caught.value) == (
        "torch.jit.script cannot compile Linear, whose 'weight' is computed by parametrizations: "
        "script constrained.release(copy.deepcopy(model)), a copy without them, or use "
        "torch.jit.trace or torch.export."
    )
    assert_close(m.state_dict(), state)
    m(torch.ones(1, 3)).sum().backward()
    measured("refused when it is scripted")


def test_e30_the_cures_work():
    m, x = model(), torch.randn(2, 3)
    expected = m(x)
    assert_close(torch.jit.script(release(copy.deepcopy(m)))(x), expected)
    assert_close(torch.jit.trace(m, (x,))(x), expected)
    assert_close(torch.export.export(m, (x,)).module()(x), expected)
    m = ours.register_parametrization(nn.Linear(3, 3), "weight", Squash())
    assert_close(torch.jit.trace(m, (x,))(x), m(x))


@torch_today
def test_e30_script_in_torch_today(measured):
    m = torchs.register_parametrization(nn.Linear(3, 3), "weight", nn.Tanh())
    scripted = torch.jit.script(m)
    with pytest.raises(torch.jit.Error, match="not working with scripting"):
        scripted(torch.ones(1, 3))
    measured("scripts, then fails when it runs")
