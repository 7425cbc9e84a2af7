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
from constrained import constrain
from tests.promises.counting import (
    Sphere,
    layer,
)
from tests.promises.foreign import Scaled, Squash, squashed

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


@pytest.mark.parametrize("name", ["orthogonal", "sphere", "low_rank(rank=2)", "positive_definite"])
def test_e02_sixty_four_layers_of_one_model_compile_once(name, measured):
    torch._dynamo.reset()
    model = constrain(nn.Sequential(*(nn.Linear(4, 4) for _ in range(64))), "*.weight", name)
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    x, expected = torch.randn(2, 4), []
    for layer_ in model:
        layer_(x).sum().backward()
        expected.append([p.grad for p in layer_.parameters()])
        layer_.zero_grad()
        # Layer by layer, as for a large model whose blocks are compiled separately.
        layer_.compile(backend=counter, fullgraph=True)
    for layer_, grads in zip(model, expected, strict=True):
        layer_(x).sum().backward()
        assert_close([p.grad for p in layer_.parameters()], grads)
    assert counter.frame_count == 1
    measured(f"{len(model)} layers: {counter.frame_count} compilation")


def test_e02_other_arguments_are_not_shared():
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    run = torch.compile(lambda m, x: m(x), backend=counter, fullgraph=True)
    x = torch.randn(2, 4)
    arguments = [("sphere", {"radius": r}) for r in (1.0, 2.0, 3.0)]
    arguments += [("orthogonal", {"map": m}) for m in ("polar", "cayley")]
    counts = []
    for _ in range(2):
        for name, given in arguments:
            m = constrain(nn.Linear(4, 4), "weight", name, **given)
            assert_close(run(m, x), m(x))
        counts.append(counter.frame_count)
    # A number that has had two values becomes an input of the compiled graph.
    assert counts == [4, 4]


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
