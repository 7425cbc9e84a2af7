"""E02: equal layers share one class, and so one compiled graph."""

import copy

import pytest
import torch
import torch._dynamo.testing
from torch import nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.utils import parametrize as torchs
from torch.testing import assert_close

import constrained.parametrize as ours
from constrained.testing.promises.counting import (
    Sphere,
    layer,
)
from constrained.testing.promises.foreign import Scaled, Squash, squashed

torch_today = pytest.mark.torch_today


def check_one_compilation(P):
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    layers = [squashed(P) for _ in range(12)]
    run = torch.compile(lambda m, x: m(x), backend=counter, fullgraph=True)
    x = torch.randn(2, 3)
    for m in layers:
        assert_close(run(m, x), m(x))
    assert counter.frame_count == 1


def test_e02_equal_layers_share_a_compiled_graph():
    check_one_compilation(ours)


@torch_today
def test_e02_in_torch_today():
    with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
        check_one_compilation(torchs)


def test_e02_equal_constrained_layers_inside_a_model_compile_once():
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    layers = [layer(Sphere()) for _ in range(12)]
    run = torch.compile(lambda m, x: m(x), backend=counter, fullgraph=True)
    x = torch.randn(2, 3)
    for i, m in enumerate(layers):
        if i % 2:
            _ = m.weight
            m(x).sum().backward()
        assert_close(run(m, x), m(x))
    assert counter.frame_count == 1


def test_e02_one_class_for_each_base_and_names():
    a, b = squashed(), squashed()
    assert type(a) is type(b)
    ours.register_parametrization(a, "bias", Squash())
    assert type(a) is not type(b) and type(b).__name__ == "ParametrizedLinear"
    ours.register_parametrization(b, "bias", Scaled())
    assert type(a) is type(b)
    c = nn.Linear(3, 3)
    ours.register_parametrization(c, "bias", Scaled())
    ours.register_parametrization(c, "weight", Scaled())
    assert type(c) is type(a)


def check_stack(P):
    models = [squashed(P) for _ in range(3)]
    params, buffers = stack_module_state(models)
    skeleton = copy.deepcopy(models[0]).to("meta")
    x = torch.randn(2, 3)
    out = vmap(lambda p, b: functional_call(skeleton, (p, b), (x,)))(params, buffers)
    for i, m in enumerate(models):
        assert_close(out[i], m(x))


def test_e02_an_ensemble_can_be_stacked():
    check_stack(ours)


@torch_today
def test_e02_stack_in_torch_today():
    with pytest.raises(RuntimeError, match="same class"):
        check_stack(torchs)
