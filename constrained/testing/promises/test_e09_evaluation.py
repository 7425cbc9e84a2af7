"""E09: in an evaluation loop a constrained layer does what a plain one does. Times: benchmarks."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import orthogonal as torch_orthogonal
from torch.nn.utils.parametrizations import spectral_norm as torch_spectral_norm
from torch.profiler import ProfilerActivity, profile

from constrained.testing.promises.catalogue import every_constraint, linear
from constrained.testing.promises.counting import (
    Outer,
    Positive,
    Sphere,
    evaluations,
    layer,
    reset,
)


def operations(model, x):
    """What torch is asked to compute in one forward pass."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        model(x)
    return sorted(event.key for event in profiler.key_averages() if event.key.startswith("aten::"))


@pytest.mark.parametrize("constraint", [Positive, Sphere, Outer])
@pytest.mark.parametrize("mode", ["no_grad", "inference_mode", "enable_grad"])
def test_e09_no_evaluation_after_the_first(constraint, mode, measured):
    model = layer(constraint()).eval()
    reset(model)
    with getattr(torch, mode)():
        for _ in range(50):
            model(torch.ones(1, 3))
    assert evaluations(model) == 1
    measured(f"50 forwards: {evaluations(model)} evaluation")


@pytest.mark.slow
@every_constraint((4, 4))
def test_e09_the_operations_of_a_plain_layer(name, arguments, shape):
    model = linear(name, arguments, shape).eval()
    plain, x = nn.Linear(shape[1], shape[0], bias=False), torch.ones(1, shape[1])
    with torch.no_grad():
        model(x)
        assert operations(model, x) == operations(plain, x)


def test_e09_the_operations_of_a_plain_layer_for_the_default(measured):
    model, plain, x = (
        linear("orthogonal", {}, (8, 8)),
        nn.Linear(8, 8, bias=False),
        torch.ones(1, 8),
    )
    with torch.no_grad():
        model(x)
        found, expected = operations(model, x), operations(plain, x)
    assert found == expected
    measured(f"{len(found)} operations, plain {len(expected)}")


@pytest.mark.torch_today
@pytest.mark.parametrize("constrain_", [torch_orthogonal, torch_spectral_norm])
def test_e09_in_torch_today(constrain_, measured):
    model, plain = constrain_(nn.Linear(8, 8, bias=False)).eval(), nn.Linear(8, 8, bias=False)
    x = torch.ones(1, 8)
    with torch.no_grad():
        model(x)
        found, expected = operations(model, x), operations(plain, x)
    assert len(found) > len(expected)
    measured(f"{len(found)} operations, plain {len(expected)}")
