"""E32: in half precision and under autocast the result errs by the rounding of its dtype."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import orthogonal as torch_orthogonal

from constrained import constrain, get, violations
from tests.promises.catalogue import every_constraint, linear

HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
SHAPES = (16, 16), (24, 16), (16, 24)
torch_today = pytest.mark.torch_today


def relative_error(layer):
    """The largest error against double precision, relative to the largest entry."""
    exact = copy.deepcopy(layer).double().weight
    found = layer.weight.double()
    return float(((found - exact).abs().max() / exact.abs().max().clamp(min=1e-30)).detach())


def steps(layer, n=3):
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05)
    x = torch.ones(2, layer.in_features, dtype=next(layer.parameters()).dtype)
    for _ in range(n):
        optimizer.zero_grad()
        layer(x).float().tanh().sum().backward()
        optimizer.step()


@HALVES
@every_constraint(*SHAPES)
def test_e32_registered_in_half_precision(name, arguments, shape, dtype):
    layer = linear(name, arguments, shape, dtype=dtype)
    for _ in range(2):
        assert layer.weight.dtype is dtype and layer.weight.isfinite().all()
        assert relative_error(layer) <= torch.finfo(dtype).eps
        assert get(name)(**arguments).contains(layer.weight).all()
        steps(layer)


@HALVES
@every_constraint(*SHAPES)
def test_e32_converted_after_registration(name, arguments, shape, dtype):
    layer = linear(name, arguments, shape)
    _ = layer.weight
    layer = layer.bfloat16() if dtype is torch.bfloat16 else layer.half()
    for _ in range(2):
        assert layer.weight.dtype is dtype and layer.weight.isfinite().all()
        assert relative_error(layer) <= torch.finfo(dtype).eps
        steps(layer)


@HALVES
@every_constraint(*SHAPES)
def test_e32_under_autocast_the_value_is_the_same(name, arguments, shape, dtype):
    layer = linear(name, arguments, shape)
    expected = layer.weight.detach().clone()
    with torch.no_grad():
        # The numbers stay the same, but the version changes, so the value is computed again.
        layer.parametrizations.weight.forget()
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(layer.weight, expected)
        y = layer(torch.ones(2, layer.in_features))
        assert y.dtype is dtype
        y.float().sum().backward()
    parameters = list(layer.parameters())
    assert all(p.grad is not None and p.grad.dtype is torch.float32 for p in parameters)


@HALVES
@pytest.mark.parametrize("map", ["polar", "cayley", "exp"])
def test_e32_orthogonality_in_half_precision(map, dtype, measured):
    layer = linear("orthogonal", {"map": map}, (64, 64), dtype=dtype)
    worst = 0.0
    for _ in range(5):
        steps(layer, 1)
        W = layer.weight.double()
        worst = max(worst, float((W.T @ W - torch.eye(64)).abs().max().detach()))
    # Each entry of W errs by half a unit in the last place, and each row has length 1.
    assert worst <= 2 * torch.finfo(dtype).eps
    measured(f"{str(dtype)[6:]} {map}: {worst:.0e}")


@torch_today
@pytest.mark.parametrize("map", ["matrix_exp", "cayley", "householder"])
def test_e32_in_torch_today(map, measured):
    try:
        layer = torch_orthogonal(nn.Linear(64, 64, bias=False).bfloat16(), orthogonal_map=map)
        steps(layer)
        W = layer.weight.double()
    except (RuntimeError, NotImplementedError) as error:
        measured(f"bfloat16 {map}: {type(error).__name__}")
        return
    error = float((W.T @ W - torch.eye(64)).abs().max().detach())
    assert not error <= 2 * torch.finfo(torch.bfloat16).eps
    measured(f"bfloat16 {map}: {error:.0e}")


@torch_today
def test_e32_autocast_in_torch_today(measured):
    layer = torch_orthogonal(nn.Linear(64, 64, bias=False), orthogonal_map="matrix_exp")
    with torch.no_grad():
        layer.parametrizations.weight.original.normal_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        W = layer.weight.double()
    error = float((W.T @ W - torch.eye(64)).abs().max().detach())
    assert error > 1e-3
    measured(f"autocast: {error:.0e}")


def test_e32_violations_of_a_model_in_half_precision():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4)).bfloat16()
    constrain(model, "*.weight", "orthogonal")
    assert all(v <= 2 * torch.finfo(torch.bfloat16).eps for v in violations(model).values())
