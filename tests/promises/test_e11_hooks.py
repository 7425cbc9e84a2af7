"""Hooks that read a stored value, count reads, or change originals (E11)."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize as torchs
from torch.testing import assert_close

import constrained.parametrize as ours
from tests.promises.counting import (
    Foreign,
    Outer,
    Sphere,
    evaluations,
    layer,
    original,
    reset,
)


def by_hand(m, f):
    """The gradient, by the original, of a function of the weight, by plain autograd."""
    return torch.autograd.grad(f(m.parametrizations.weight()), original(m))[0]


def test_e11_a_hook_that_reads_the_value_before_and_after_forward(measured):
    m = layer(Sphere())
    seen = []
    m.register_forward_pre_hook(lambda module, args: seen.append(module.weight))
    m.register_forward_hook(lambda module, args, out: seen.append(module.weight))
    reset(m)
    m(torch.ones(1, 3)).sum().backward()
    assert evaluations(m) == 1 and seen[0] is seen[1]
    assert_close(original(m).grad, by_hand(m, torch.sum))
    measured("hooks that read: 1 evaluation")


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_e11_a_hook_that_reads_without_gradients(mode):
    m = layer(Sphere())

    def look(module, args):
        with mode():
            assert not module.weight.requires_grad

    m.register_forward_pre_hook(look)
    for _ in range(2):
        m.zero_grad()
        m(torch.ones(1, 3)).sum().backward()
        assert_close(original(m).grad, by_hand(m, torch.sum))
        torch.optim.SGD(m.parameters(), lr=0.1).step()


@pytest.mark.parametrize("full", ["register_full_backward_hook", "register_full_backward_pre_hook"])
def test_e11_a_hook_that_reads_in_the_backward_pass(full):
    """Gradients are off there, so the value is not part of the graph of this backward pass."""
    m = layer(Sphere())
    seen = []
    getattr(m, full)(lambda module, *gradients: seen.append(module.weight.requires_grad))
    reset(m)
    for k in range(1, 3):
        m(torch.ones(1, 3, requires_grad=True)).sum().backward()
        assert seen == [False] * k
        assert_close(original(m).grad, k * by_hand(m, torch.sum))


def test_e11_a_hook_on_several_gradients():
    m = layer(Outer())
    lists = m.parametrizations.weight
    seen = []
    torch.autograd.graph.register_multi_grad_hook(
        [lists.original0, lists.original1, m.bias], lambda gradients: seen.append(len(gradients))
    )
    for k in range(1, 3):
        (m(torch.ones(1, 3)).sum() + m.weight.sum()).backward()
        assert seen == [3] * k


def test_e11_a_hook_on_a_value_scales_what_arrives_at_the_original():
    m = layer(Sphere())
    w = m.weight
    handle = w.register_hook(lambda g: 3 * g)
    m.weight.sin().sum().backward()
    expected = by_hand(m, lambda w: w.sin().sum())
    assert_close(original(m).grad, 3 * expected)
    handle.remove()
    m.zero_grad()
    m.weight.sin().sum().backward()
    assert_close(original(m).grad, expected)


def test_e11_hooks_that_run_before_the_gradient_arrives():
    m = layer(Sphere())
    order = []
    node = m.weight.grad_fn
    node.register_prehook(lambda gradients: order.append("before the map"))
    node.register_hook(lambda inputs, outputs: order.append("after the map"))
    original(m).register_hook(lambda g: order.append("original"))
    original(m).register_post_accumulate_grad_hook(lambda p: order.append("accumulated"))
    m(torch.ones(1, 3)).sum().backward()
    assert order == ["before the map", "after the map", "original", "accumulated"]


def test_e11_a_step_in_a_hook_between_two_backward_passes():
    """The second loss was computed before the step, so its backward pass raises."""
    m = layer(Sphere())
    first, second = m(torch.ones(1, 3)).sum(), m(torch.ones(1, 3)).pow(2).sum()

    def step(p):
        with torch.no_grad():
            p.sub_(0.1 * p.grad)
        p.grad = None

    original(m).register_post_accumulate_grad_hook(step)
    first.backward()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        second.backward()
    assert_close(m.weight, m.parametrizations.weight())


def test_e11_hooks_on_state_dicts_find_the_originals():
    m = layer(Sphere())
    _ = m.weight
    seen = []
    m.register_state_dict_pre_hook(lambda module, prefix, keep: seen.append(module.weight))
    state = {k: 2 * v for k, v in m.state_dict().items()}
    m.register_load_state_dict_post_hook(lambda module, keys: seen.append(module.weight))
    m.load_state_dict(state)
    assert_close(original(m).detach(), state["parametrizations.weight.original"])
    assert len(seen) == 2 and seen[1] is m.weight
    assert_close(m.weight, m.parametrizations.weight())


def test_e11_hooks_of_foreign_modules_run_at_each_evaluation():
    m = layer(Foreign())
    calls = []
    m.parametrizations.weight[0].register_forward_hook(lambda *_: calls.append(1))
    _ = m.weight, m.weight
    assert len(calls) == 2
    with ours.cached():
        _ = m.weight, m.weight
    assert len(calls) == 3


@pytest.mark.torch_today
def test_e11_two_backward_passes_in_torch_today(measured):
    m = torchs.register_parametrization(nn.Linear(3, 3), "weight", nn.Tanh())
    with torchs.cached():
        first, second = m(torch.ones(1, 3)).sum(), m(torch.ones(1, 3)).pow(2).sum()
        first.backward()
        with pytest.raises(RuntimeError, match="second time"):
            second.backward()
    measured("two losses: the second backward pass raises")


@pytest.mark.torch_today
def test_e11_per_sample_gradients_in_torch_today(measured):
    m = torchs.register_parametrization(nn.Linear(3, 3), "weight", nn.Tanh())
    parameters = {k: p.detach() for k, p in m.named_parameters()}

    def loss(p, x):
        return torch.func.functional_call(m, p, (x,)).sum()

    def gradient():
        return torch.func.grad(loss)(parameters, torch.ones(3))["parametrizations.weight.original"]

    expected = gradient()
    with torchs.cached():
        _ = m.weight
        found = gradient()
    assert not torch.allclose(found, expected) and not found.any()
    measured("func.grad inside cached: zeros")
