"""E27: ``functional_call`` with the name of a parametrized tensor overrides its value."""

import copy
import threading

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jacrev, jvp, vmap
from torch.nn.utils import parametrize as torchs
from torch.testing import assert_close

import constrained.parametrize as ours
from constrained import constrain, writable
from tests.promises.counting import (
    Averaging,
    Foreign,
    Outer,
    Positive,
    Sphere,
    evaluations,
    layer,
)
from tests.promises.foreign import Squash

torch_today = pytest.mark.torch_today
MAKES = pytest.mark.parametrize("make", [Positive, Sphere, Outer, Foreign, Averaging])


@MAKES
@pytest.mark.parametrize("inside_cached", [False, True])
def test_e27_an_override_is_the_value(make, inside_cached, measured):
    m = layer(make())
    state = copy.deepcopy(m.state_dict())
    names = set(vars(m))
    W, x = torch.randn(3, 3, requires_grad=True), torch.randn(2, 3)
    with ours.cached() if inside_cached else torch.enable_grad():
        for _ in range(2):
            out = functional_call(m, {"weight": W}, (x,))
            assert_close(out, x @ W.T + m.bias)
            (g,) = torch.autograd.grad(out.sum(), W)
            assert_close(g, x.sum(0).expand(3, 3))
    assert evaluations(m) == 0
    assert_close(m.state_dict(), state)
    assert set(vars(m)) == names
    measured("output and gradient are those of W, with no evaluation and no change of state")


@torch_today
def test_e27_an_override_in_torch_today(measured):
    m = nn.Linear(3, 3)
    m.weight.data = Sphere().project(m.weight.data)
    torchs.register_parametrization(m, "weight", Sphere())
    W, x = torch.randn(3, 3, requires_grad=True), torch.randn(2, 3)
    with pytest.raises(ValueError, match="violates"):
        functional_call(m, {"weight": W}, (x,))
    W = nn.functional.normalize(W.detach(), dim=-1).requires_grad_()
    out = functional_call(m, {"weight": W}, (x,))
    assert torch.autograd.grad(out.sum(), W, allow_unused=True)[0] is None
    measured("W is projected or refused; its gradient is None")


@MAKES
def test_e27_transforms(make):
    m = layer(make())
    W, x = torch.randn(3, 3), torch.randn(2, 3)

    def f(W):
        return functional_call(m, {"weight": W}, (x,)).sin().sum()

    def plain(W):
        return nn.functional.linear(x, W, m.bias).sin().sum()

    state = copy.deepcopy(m.state_dict())
    assert_close(grad(f)(W), grad(plain)(W))
    assert_close(jvp(f, (W,), (W,)), jvp(plain, (W,), (W,)))
    assert_close(jacrev(f)(W), jacrev(plain)(W))
    stacked = torch.stack([W, 2 * W])
    assert_close(vmap(f)(stacked), vmap(plain)(stacked))
    assert_close(vmap(grad(f))(stacked), vmap(grad(plain))(stacked))
    assert_close(m.state_dict(), state)


@torch_today
def test_e27_transforms_in_torch_today():
    m = torchs.register_parametrization(nn.Linear(3, 3), "weight", Squash())
    with pytest.raises(RuntimeError):
        vmap(lambda W: functional_call(m, {"weight": W}, (torch.ones(1, 3),)))(torch.zeros(2, 3, 3))


def test_e27_nested_paths_several_tensors_and_real_names():
    model = nn.Sequential(layer(Sphere()), nn.Sequential(layer(Positive())))
    V, W, x = torch.randn(3, 3), torch.randn(3, 3), torch.randn(2, 3)
    bias, own = torch.randn(3), model[1][0].bias
    given = {"0.weight": V, "1.0.weight": W, "0.bias": bias}
    assert_close(functional_call(model, given, (x,)), (x @ V.T + bias) @ W.T + own)
    given = {"0.weight": V, "1.0.parametrizations.weight.original": W, "0.bias": bias}
    assert_close(functional_call(model, given, (x,)), (x @ V.T + bias) @ W.exp().T + own)
    assert_close(
        functional_call(model, ({"0.weight": V}, {"0.bias": bias, "1.0.weight": W}), (x,)),
        (x @ V.T + bias) @ W.T + own,
    )


def test_e27_nested_calls_and_errors_leave_nothing():
    m = layer(Sphere())
    V, W = torch.randn(3, 3), torch.randn(3, 3)
    seen = []

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.m = m

        def forward(self, fail=False):
            seen.append(self.m.weight)
            functional_call(self.m, {"weight": W}, (torch.ones(1, 3),))
            seen.append(self.m.weight)
            if fail:
                raise ZeroDivisionError

    outer = Twice()
    own = m.weight.detach().clone()
    functional_call(outer, {"m.weight": V}, ())
    assert seen[0] is V and seen[1] is V
    with pytest.raises(ZeroDivisionError):
        functional_call(outer, {"m.weight": V}, (True,))
    assert_close(m.weight.detach(), own)
    assert "_overrides" not in vars(m)


def tied():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    return constrain(model, "0.weight", Sphere())


def test_e27_ties():
    model, x = tied(), torch.randn(2, 3)
    V, W, own = torch.randn(3, 3), torch.randn(3, 3), tied_value(model := tied())
    assert_close(functional_call(model, {"0.weight": V}, (x,)), x @ V.T @ V.T)
    assert_close(functional_call(model, {"0.weight": V}, (x,), tie_weights=False), x @ V.T @ own.T)
    both = {"0.weight": V, "1.weight": W}
    assert_close(functional_call(model, both, (x,), tie_weights=False), x @ V.T @ W.T)
    with pytest.raises(ValueError, match="multiple values for keys"):
        functional_call(model, both, (x,))


def tied_value(model):
    return model[1].weight.detach().clone()


def test_e27_strict_says_what_torch_says():
    m = layer(Sphere())
    with pytest.raises(RuntimeError, match=r"Unexpected key\(s\): 'weight'"):
        functional_call(
            m, {"weight": torch.ones(3, 3), "bias": torch.ones(3)}, (torch.ones(1, 3),), strict=True
        )


def test_e27_other_threads_read_what_they_always_did(measured):
    m = layer(Sphere())
    own, W = m.weight.detach().clone(), torch.randn(3, 3)
    inside, done, read = threading.Event(), threading.Event(), []

    def reader():
        inside.wait()
        read.append(m.weight.detach().clone())
        done.set()

    m.register_forward_pre_hook(lambda *_: (inside.set(), done.wait(10)) and None)
    thread = threading.Thread(target=reader)
    thread.start()
    assert_close(functional_call(m, {"weight": W}, (torch.eye(3),)), W.T + m.bias)
    thread.join()
    assert_close(read, [own])
    measured("other threads read the constrained value meanwhile")


def test_e27_compile():
    torch._dynamo.reset()
    m = layer(Sphere())
    run = torch.compile(
        lambda W, x: functional_call(m, {"weight": W}, (x,)), backend="aot_eager", fullgraph=True
    )
    x = torch.randn(2, 3)
    for _ in range(2):
        W = torch.randn(3, 3, requires_grad=True)
        out = run(W, x)
        assert_close(out, x @ W.T + m.bias)
        assert_close(torch.autograd.grad(out.sum(), W)[0], x.sum(0).expand(3, 3))
    assert m._overrides is None and evaluations(m) == 0


def check_overrides(m, call, prefix=""):
    """Calls with the module's own value alternate with calls with other values."""
    x, own = torch.randn(2, 3), m.weight.detach().clone()
    for _ in range(2):
        assert_close(call(x), x @ own.T + m.bias)
        W = torch.randn(3, 3, requires_grad=True)
        out = functional_call(call, {f"{prefix}weight": W}, (x,))
        assert_close(out, x @ W.T + m.bias)
        assert_close(torch.autograd.grad(out.sum(), W)[0], x.sum(0).expand(3, 3))


# The others of `MAKES` change when they are read.
@pytest.mark.parametrize("make", [Positive, Sphere, Outer, Foreign])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_e27_a_module_that_was_compiled_and_called(make, backend):
    torch._dynamo.reset()
    m = layer(make())
    m.compile(backend=backend)
    check_overrides(m, m)


def test_e27_a_wrapper_and_a_block_that_were_compiled_and_called():
    torch._dynamo.reset()
    m = layer(Sphere())
    check_overrides(m, torch.compile(m, backend="eager"), "_orig_mod.")
    m = layer(Sphere())
    m.compile(backend="eager", fullgraph=True)
    check_overrides(m, nn.Sequential(m, nn.Identity()), "0.")


def test_e27_a_compiled_module_while_it_is_written():
    torch._dynamo.reset()
    m, x = layer(Sphere()), torch.randn(2, 3)
    run = torch.compile(m, backend="eager")
    call = torch.compile(lambda W: functional_call(m, {"weight": W}, (x,)), backend="eager")
    W = torch.randn(3, 3)
    _ = run(x), call(W)
    with writable(m):
        with torch.no_grad():
            m.weight.copy_(2 * torch.eye(3))
        assert_close(run(x), 2 * x + m.bias)
        assert_close(call(W), x @ W.T + m.bias)
        assert_close(run(x), 2 * x + m.bias)
        assert_close(functional_call(run, {"_orig_mod.weight": W}, (x,)), x @ W.T + m.bias)
    assert_close(m.weight, torch.eye(3))
    assert_close(run(x), x + m.bias)
