"""E22: removal keeps a parameter a parameter, and its `requires_grad`."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize as torchs
from torch.testing import assert_close

import constrained.parametrize as ours
from constrained import constrain, release
from tests.promises.foreign import Scaled, Split, Squash

torch_today = pytest.mark.torch_today

MODES = {
    "plainly": torch.enable_grad,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


class MatrixProduct(nn.Module):
    """A product that autocast would compute in low precision."""

    def forward(self, x):
        return x @ torch.eye(3)

    def right_inverse(self, y):
        return y


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
@pytest.mark.parametrize("requires_grad", [True, False])
@pytest.mark.parametrize("parametrization", [Split, Squash, MatrixProduct, "low_rank(rank=2)"])
def test_e22_a_parameter_stays_one(mode, requires_grad, parametrization):
    m = nn.Linear(3, 3)
    m.weight.requires_grad_(requires_grad)
    if isinstance(parametrization, str):
        constrain(m, "weight", parametrization)
    else:
        ours.register_parametrization(m, "weight", parametrization())
    value = m.weight.detach().clone()
    with mode():
        ours.remove_parametrizations(m, "weight")
    assert type(m) is nn.Linear and list(dict(m.named_parameters())) == ["weight", "bias"]
    weight = m.weight
    assert type(weight) is nn.Parameter and weight.requires_grad is requires_grad
    assert weight.dtype is torch.float32 and weight.is_leaf and not weight.is_inference()
    assert_close(weight.detach(), value)
    m(torch.ones(1, 3)).sum().backward()
    assert (weight.grad is not None) is requires_grad
    torch.optim.SGD(m.parameters(), lr=0.1).step()


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize("parametrization", [Split, Squash, MatrixProduct])
def test_e22_a_buffer_stays_one(mode, persistent, parametrization):
    m = nn.Module()
    m.register_buffer("state", torch.rand(3, 3) / 2, persistent=persistent)
    value = m.state.clone()
    ours.register_parametrization(m, "state", parametrization())
    with mode():
        ours.remove_parametrizations(m, "state")
    assert list(m._buffers) == ["state"] and not list(m.parameters())
    assert ("state" in m.state_dict()) is persistent
    assert not m.state.requires_grad and not m.state.is_inference()
    assert m.state.dtype is torch.float32
    assert_close(m.state, value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_e22_dtype_and_device_are_kept(dtype):
    m = nn.Linear(3, 3)
    ours.register_parametrization(m, "weight", Split())
    m.to(dtype)
    ours.remove_parametrizations(m, "weight")
    assert m.weight.dtype is dtype and isinstance(m.weight, nn.Parameter)
    m = nn.Linear(3, 3)
    ours.register_parametrization(m, "weight", Split())
    m.to("meta")
    with torch.no_grad():
        ours.remove_parametrizations(m, "weight")
    assert m.weight.is_meta and isinstance(m.weight, nn.Parameter)


def test_e22_left_at_the_original_in_every_mode():
    for mode in MODES.values():
        m = nn.Linear(3, 3)
        weight = m.weight
        ours.register_parametrization(m, "weight", Scaled())
        original = m.parametrizations.weight.original.detach().clone()
        with mode():
            ours.remove_parametrizations(m, "weight", leave_parametrized=False)
        assert m.weight is weight and weight.requires_grad
        assert_close(weight.detach(), original)


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_e22_release_of_a_frozen_model(mode):
    m = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)).requires_grad_(False)
    constrain(m, {"0.weight": "low_rank(rank=1)", "1.weight": "orthogonal"})
    values = [layer.weight.clone() for layer in m]
    with mode():
        release(m)
    for layer, value in zip(m, values, strict=True):
        assert isinstance(layer.weight, nn.Parameter) and not layer.weight.requires_grad
        assert_close(layer.weight.detach(), value)


def kinds(P):
    """The kinds of tensor after removal: of a parameter, under no_grad, and of a frozen one."""
    found = []
    for frozen in (False, True):
        m = nn.Linear(3, 3)
        m.weight.requires_grad_(not frozen)
        P.register_parametrization(m, "weight", Split())
        with torch.set_grad_enabled(frozen):
            P.remove_parametrizations(m, "weight")
        found.append("parameter" if "weight" in m._parameters else "buffer")
    return found


def test_e22_kinds(measured):
    found = kinds(ours)
    measured(f"removed under no_grad: a {found[0]}; frozen: a {found[1]}")
    assert found == ["parameter"] * 2


@torch_today
def test_e22_kinds_in_torch_today(measured):
    found = kinds(torchs)
    measured(f"removed under no_grad: a {found[0]}; frozen: a {found[1]}")
    assert found == ["buffer"] * 2
