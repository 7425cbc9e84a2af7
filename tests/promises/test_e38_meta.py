"""E38: a model on the meta device is constrained, filled and loaded."""

import math

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parametrizations

import constrained
from constrained.constraint import registry

torch_today = pytest.mark.torch_today

EXAMPLES = [
    pytest.param(cls, kwargs, event, id=f"{cls.name}-{i}")
    for cls in map(registry.get, registry.names())
    for i, (kwargs, event) in enumerate(cls.examples)
]


def model(constraint, value):
    """A model with one tensor under a constraint."""
    m = nn.Module()
    m.register_parameter("w", nn.Parameter(value))
    return constrained.constrain(m, "w", constraint)


@pytest.mark.parametrize(("cls", "kwargs", "event"), EXAMPLES)
@pytest.mark.parametrize("assign", [False, True])
def test_e38_from_meta_to_a_checkpoint(cls, kwargs, event, assign):
    source = model(cls(**kwargs), cls(**kwargs).sample((2, *event)))
    checkpoints = {"own": source.state_dict(), "plain": {"w": source.w.detach().clone()}}
    for name, state in checkpoints.items():
        m = model(cls(**kwargs), torch.empty(2, *event, device="meta"))
        assert m.w.is_meta and m.w.shape == (2, *event)
        if not assign:
            m.to_empty(device="cpu")
        m.load_state_dict(state, assign=assign)
        constrained.assert_feasible(m)
        torch.testing.assert_close(m.w, source.w, msg=lambda text, n=name: f"{n}: {text}")


def test_e38_reports_of_a_model_without_values(measured):
    with torch.device("meta"):
        m = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
        constrained.constrain(m, {"0.weight": "orthogonal", "1.weight": "low_rank(rank=1)"})
        assert m(torch.ones(3, 4)).is_meta
    assert constrained.spec(m) == {
        "0.weight": {"name": "orthogonal"},
        "1.weight": {"name": "low_rank", "rank": 1},
    }
    # There are no numbers, so nobody can tell whether they are in the set.
    found = constrained.violations(m)
    assert set(found) == {"0.weight", "1.weight"} and all(map(math.isnan, found.values()))
    assert [row.holds for row in constrained.report(m).rows] == [None, None]
    assert "4 x 4" in str(constrained.report(m))
    measured("constrained on meta, then to_empty and load")


@pytest.mark.parametrize("spec", ["orthogonal", "low_rank(rank=2)", "positive_definite", "simplex"])
def test_e38_initialised_after_to_empty(spec):
    with torch.device("meta"):
        m = nn.Linear(4, 4)
    constrained.constrain(m, "weight", spec)
    m.to_empty(device="cpu")
    m.reset_parameters()
    constrained.assert_feasible(m)
    m(torch.ones(1, 4)).sum().backward()
    assert all(p.grad is not None for p in m.parameters())


def test_e38_what_nobody_filled_is_reported():
    m = constrained.constrain(nn.Linear(4, 4), "weight", "symmetric")
    with torch.no_grad():
        m.parametrizations.weight.original.fill_(torch.nan)
    with pytest.raises(constrained.InfeasibleError, match="NaN or infinite"):
        constrained.assert_feasible(m)


def test_e38_fake_tensors():
    with FakeTensorMode():
        m = constrained.constrain(nn.Linear(4, 4), "weight", "orthogonal")
        assert m(torch.ones(2, 4)).shape == (2, 4)


@torch_today
def test_e38_meta_in_torch_today(measured):
    layer = nn.Linear(4, 4, device="meta")
    with pytest.raises(RuntimeError, match="meta") as error:
        parametrizations.orthogonal(layer)
    measured(f"orthogonal on meta: {error.value}")
