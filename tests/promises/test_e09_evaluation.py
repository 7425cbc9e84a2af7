"""E09: in an evaluation loop a constrained layer computes what a plain one does."""

import pytest
import torch
from torch.nn.utils.parametrizations import orthogonal as torch_orthogonal
from torch.nn.utils.parametrizations import spectral_norm as torch_spectral_norm
from torch.profiler import ProfilerActivity, profile

from tests.promises.catalogue import every_constraint, linear, plain
from tests.promises.counting import (
    Outer,
    Positive,
    Sphere,
    evaluations,
    layer,
    reset,
)

# Some versions of torch's profiler warn of reference cycles that do not exist here.
pytestmark = pytest.mark.filterwarnings("ignore:.*Profiler clears events:UserWarning")


def operations(model, x):
    """The operations that torch runs in one forward pass."""
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
    x = torch.ones(1, model.in_features)
    with torch.no_grad():
        # Read first: a weight of low rank that has not been read is applied by its factors.
        _ = model.weight
        model(x)
        assert operations(model, x) == operations(plain(shape), x)


def test_e09_the_operations_of_a_plain_layer_for_the_default(measured):
    model, twin, x = linear("orthogonal", {}, (8, 8)), plain((8, 8)), torch.ones(1, 8)
    with torch.no_grad():
        model(x)
        found, expected = operations(model, x), operations(twin, x)
    assert found == expected
    measured(f"{len(found)} operations, plain {len(expected)}")


@pytest.mark.torch_today
@pytest.mark.parametrize("constrain_", [torch_orthogonal, torch_spectral_norm])
def test_e09_in_torch_today(constrain_, measured):
    model, twin = constrain_(plain((8, 8))).eval(), plain((8, 8))
    x = torch.ones(1, 8)
    with torch.no_grad():
        model(x)
        found, expected = operations(model, x), operations(twin, x)
    assert len(found) > len(expected)
    measured(f"{len(found)} operations, plain {len(expected)}")
