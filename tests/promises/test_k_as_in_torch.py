"""Behaviour that stays as in torch (K1 to K8)."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, hessian, jvp, vmap
from torch.nn.utils import parametrize as torchs
from torch.testing import assert_close

import constrained.parametrize as ours
from constrained import constrain, release
from tests.promises.counting import (
    Outer,
    Positive,
    Sphere,
    layer,
    original,
)
from tests.promises.foreign import Scaled, Split, Squash, squashed

torch_today = pytest.mark.torch_today


def test_k1_an_original_keeps_its_identity():
    m = nn.Linear(3, 3)
    weight = m.weight
    optimizer = torch.optim.Adam(m.parameters(), lr=0.1)
    ours.register_parametrization(m, "weight", Squash())
    assert original(m) is weight
    m.weight = torch.full((3, 3), 0.5)
    assert original(m) is weight
    m(torch.ones(1, 3)).sum().backward()
    before = m.weight.detach().clone()
    optimizer.step()
    assert (m.weight < before).all()
    ours.remove_parametrizations(m, "weight")
    assert m.weight is weight
    optimizer.zero_grad()
    m(torch.ones(1, 3)).sum().backward()
    before = m.weight.detach().clone()
    optimizer.step()
    assert (m.weight < before).all()


def test_k1_with_frozen_originals_the_trained_one_keeps_its_identity():
    from tests.promises.counting import Anchored

    m = nn.Linear(3, 3)
    weight = m.weight
    ours.register_parametrization(m, "weight", Anchored())
    lists = m.parametrizations.weight
    assert lists.original0 is weight and "original1" in lists._buffers
    ours.remove_parametrizations(m, "weight")
    assert m.weight is weight


def test_k2_state_dict_keys():
    m = nn.Linear(3, 3)
    ours.register_parametrization(m, "weight", Split())
    ours.register_parametrization(m, "weight", Scaled())
    ours.register_parametrization(m, "bias", Scaled())
    assert set(m.state_dict()) == {
        "parametrizations.weight.original0",
        "parametrizations.weight.original1",
        "parametrizations.weight.1.gain",
        "parametrizations.bias.original",
        "parametrizations.bias.0.gain",
    }
    ours.remove_parametrizations(m, "weight")
    ours.remove_parametrizations(m, "bias")
    assert list(m.state_dict()) == ["weight", "bias"]


def test_k2_states_pass_between_the_engines():
    a, b = squashed(ours), squashed(torchs)
    b.load_state_dict(a.state_dict())
    assert_close(a.weight, b.weight)
    with torch.no_grad():
        original(b).mul_(0.5)
    a.load_state_dict(b.state_dict())
    assert_close(a.weight, b.weight)


def test_k3_the_training_flag_is_copied_and_put_back_after_an_error():
    m = nn.Linear(3, 3).eval()
    good, bad = Squash(), nn.Sequential(nn.Flatten(0))
    ours.register_parametrization(m, "weight", good)
    assert not good.training
    with pytest.raises(ValueError, match="may not change the shape"):
        ours.register_parametrization(m, "bias", nn.Unflatten(0, (3, 1)))
    with pytest.raises(ValueError, match="may not change the shape"):
        ours.register_parametrization(m, "weight", bad)
    assert bad.training and bad[0].training


def test_k4_chains_read_forwards_and_are_assigned_backwards():
    m = nn.Linear(3, 3)
    ours.register_parametrization(m, "weight", Scaled())
    ours.register_parametrization(m, "weight", Squash())
    assert_close(m.weight.detach(), (2 * original(m)).tanh().detach())
    new = torch.full((3, 3), 0.3)
    m.weight = new
    assert_close(original(m).detach(), new.atanh() / 2)


def test_k4_an_original_can_be_parametrized():
    m = layer(Sphere())
    ours.register_parametrization(m.parametrizations.weight, "original", Squash())
    inner = m.parametrizations.weight.parametrizations.original.original
    assert_close(m.weight, nn.functional.normalize(inner.tanh(), dim=1))
    m.weight.sum().backward()
    assert inner.grad is not None
    with torch.no_grad():
        inner.copy_(torch.eye(3) + 0.1)
    assert_close(m.weight, nn.functional.normalize(inner.tanh(), dim=1))
    m.weight = nn.functional.normalize(torch.full((3, 3), 0.5), dim=1)
    assert_close(inner.tanh().detach(), m.weight.detach())
    ours.remove_parametrizations(m.parametrizations.weight, "original")
    assert type(m.parametrizations.weight) is ours.ParametrizationList
    assert_close(m.weight.detach(), torch.full((3, 3), 3**-0.5))


def test_k4_buffers():
    m = nn.BatchNorm1d(3)
    constrain(m, "running_var", Positive())
    assert not isinstance(original(m, "running_var"), nn.Parameter)
    assert not m.running_var.requires_grad
    m.eval()(torch.randn(2, 3)).sum().backward()
    release(m)
    assert list(dict(m.named_buffers())) == ["running_mean", "running_var", "num_batches_tracked"]


@pytest.mark.parametrize("names", [["weight"], ["bias"], ["weight", "bias"], ["bias", "weight"]])
def test_k5_the_class_comes_back(names):
    m = nn.Linear(3, 3)
    for name in names:
        ours.register_parametrization(m, name, Scaled())
    for name in names:
        assert type(m) is not nn.Linear
        ours.remove_parametrizations(m, name)
    assert type(m) is nn.Linear and not hasattr(m, "parametrizations")
    assert "parametrizations" not in m._modules


# K6: function transforms, compilers, wrappers


def three_reads(m, x):
    return (m.weight @ x + m.weight.sum() * m.weight.diagonal()).pow(2).sum()


@pytest.mark.filterwarnings("ignore:.torch.jit.script")
@pytest.mark.parametrize("constraint", [Positive, Sphere, Outer, Squash, Split])
def test_k6_functional_call_and_transforms(constraint):
    m = layer(constraint()).double()
    params = {k: p.detach().clone() for k, p in m.named_parameters()}
    x = torch.randn(3, dtype=torch.double)

    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = m

        def forward(self, x):
            return three_reads(self.inner, x)

    reader = Reader()

    def f(p):
        return functional_call(reader, {f"inner.{k}": v for k, v in p.items()}, (x,))

    three_reads(m, x).backward()
    expected = {k: p.grad for k, p in m.named_parameters() if k != "bias"}
    for _ in range(2):
        found = grad(f)(params)
        for k in expected:
            assert_close(found[k], expected[k])
        tangents = {k: torch.ones_like(v) for k, v in params.items()}
        _, out = jvp(f, (params,), (tangents,))
        assert_close(out, sum(g.sum() for g in expected.values()))
        for rows in hessian(f)(params).values():
            assert all(torch.isfinite(h).all() for h in rows.values())
        _ = m.weight, three_reads(m, x)


def test_k6_per_sample_gradients():
    m = layer()
    params = {k: p.detach() for k, p in m.named_parameters()}
    x = torch.randn(5, 3)

    def loss(p, row):
        return functional_call(m, p, (row,)).pow(2).sum()

    found = vmap(grad(loss), (None, 0))(params, x)
    for i in range(5):
        m.zero_grad()
        m(x[i]).pow(2).sum().backward()
        for k, p in m.named_parameters():
            assert_close(found[k][i], p.grad)


def test_k6_compiles_without_a_break_and_trains():
    torch._dynamo.reset()
    m, twin = layer(Sphere()), layer(Sphere())
    twin.load_state_dict(m.state_dict())
    compiled = torch.compile(m, fullgraph=True, backend="aot_eager")
    optimizers = [torch.optim.SGD(x.parameters(), lr=0.1) for x in (m, twin)]
    x = torch.randn(4, 3)
    for _ in range(3):
        for run, optimizer in zip((compiled, twin), optimizers, strict=True):
            optimizer.zero_grad()
            run(x).pow(2).sum().backward()
            optimizer.step()
        assert_close(m.weight, twin.weight)
        assert_close(compiled(x), twin(x))


@pytest.mark.parametrize("strict", [True, False])
def test_k6_export(strict):
    m = layer(Sphere()).eval()
    x = torch.randn(2, 3)
    expected = m(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(m, (x,), strict=strict)
    assert "parametrizations.weight.original" in program.state_dict
    assert_close(program.module()(x), expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_k6_jit_trace():
    m = layer(Sphere())
    x = torch.randn(2, 3)
    _ = m.weight
    traced = torch.jit.trace(m, (x,))
    with ours.cached():
        torch.jit.trace(m, (x,))
    with torch.no_grad():
        original(m).copy_(torch.eye(3) + 0.1)
    assert_close(traced(x), m(x))


def test_k6_hooks_on_a_parameter_survive():
    m = nn.Linear(3, 3)
    calls = []
    m.weight.register_hook(lambda g: calls.append("gradient"))
    m.weight.register_post_accumulate_grad_hook(lambda p: calls.append("accumulated"))
    ours.register_parametrization(m, "weight", Squash())
    m(torch.ones(1, 3)).sum().backward()
    assert calls == ["gradient", "accumulated"]
    ours.remove_parametrizations(m, "weight")
    m(torch.ones(1, 3)).sum().backward()
    assert calls == ["gradient", "accumulated"] * 2


def test_k6_modules_are_those_that_there_are():
    """Iterating over all modules gives each parameter once, under its own name."""
    m = nn.Sequential(nn.LSTM(3, 3), nn.MultiheadAttention(4, 2), nn.Linear(2, 2))
    ours.register_parametrization(m, "0.weight_hh_l0", Squash())
    ours.register_parametrization(m, "1.in_proj_bias", Scaled())
    ours.register_parametrization(m, "2.bias", Scaled())
    for name, module in m.named_modules():
        assert m.get_submodule(name) is module
    met = [p for module in m.modules() for p in module.parameters(recurse=False)]
    assert len(met) == len({id(p) for p in met}) == len(list(m.parameters()))
    names = [name for name, _ in m.named_modules()]
    assert len(names) == len(set(names)) and names[0] == ""
    assert names.index("0") < names.index("0.parametrizations.weight_hh_l0")
    for name, p in m.named_parameters():
        assert m.get_parameter(name) is p


# K7, K8


@pytest.mark.parametrize("change", ["step", "assign", "load_state_dict"])
def test_k7_a_change_between_forward_and_backward_raises(change):
    m = layer(Sphere())
    state = copy.deepcopy(m.state_dict())
    loss = m(torch.ones(1, 3)).pow(2).sum()
    if change == "step":
        with torch.no_grad():
            original(m).add_(1.0)
    elif change == "assign":
        m.weight = nn.functional.normalize(torch.ones(3, 3), dim=1)
    else:
        m.load_state_dict(state)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    m(torch.ones(1, 3)).pow(2).sum().backward()
    assert torch.isfinite(original(m).grad).all()


def test_k8_cached():
    m = squashed()
    with ours.cached():
        assert id(m.weight) == id(m.weight)
    assert id(m.weight) != id(x := m.weight) and x is not None
