"""Derivatives through a stored value: any number of backward passes, of any order.

The reference is an unconstrained expression of the originals, differentiated by plain autograd.
"""

import gc

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.functional import hvp, jacobian, vhp
from torch.nn.utils import parametrize as torchs
from torch.testing import assert_close

import constrained.parametrize as ours
from tests.promises.counting import (
    Anchored,
    Foreign,
    Outer,
    Positive,
    Sphere,
    Symmetric,
    evaluations,
    layer,
    original,
    reset,
)

CONSTRAINTS = pytest.mark.parametrize("constraint", [Positive, Sphere, Symmetric, Outer, Anchored])


def trained(m):
    return [p for p in m.parametrizations.weight.parameters() if p.requires_grad]


def fresh(m):
    """The weight, by plain autograd, in a graph of its own."""
    return m.parametrizations.weight()


# --------------------------------------------------------------------- several backward passes


@CONSTRAINTS
def test_two_losses_two_backward_passes(constraint):
    m = layer(constraint())
    x = torch.randn(4, 3)
    first, second = m(x).pow(2).sum(), m(2 * x).tanh().sum()
    first.backward()
    second.backward()
    assert evaluations(m) == 1
    loss = (x @ fresh(m).T + m.bias).pow(2).sum() + (2 * x @ fresh(m).T + m.bias).tanh().sum()
    expected = torch.autograd.grad(loss, trained(m))
    assert_close([p.grad for p in trained(m)], list(expected))


@CONSTRAINTS
def test_one_value_in_two_losses(constraint):
    m = layer(constraint())
    w = m.weight
    for k in range(1, 4):
        (k * w.pow(2)).sum().backward()
    expected = torch.autograd.grad(6 * fresh(m).pow(2).sum(), trained(m))
    assert_close([p.grad for p in trained(m)], list(expected))
    assert evaluations(m) == 2


def test_forward_backward_forward_backward():
    m = layer(Sphere())
    total = torch.zeros(3, 3)
    for _ in range(3):
        m.weight.sin().sum().backward()
        total += torch.autograd.grad(fresh(m).sin().sum(), trained(m))[0]
        assert_close(original(m).grad, total)


def test_retain_graph():
    m = layer(Sphere())
    loss = m(torch.ones(1, 3)).pow(2).sum()
    loss.backward(retain_graph=True)
    once = original(m).grad.clone()
    loss.backward()
    assert_close(original(m).grad, 2 * once)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_a_backward_pass_that_fails_leaves_the_value_usable():
    m = layer(Sphere())
    loss = m.weight.pow(2).sum()
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()
    m.zero_grad()
    m.weight.sin().sum().backward()
    expected = torch.autograd.grad(fresh(m).sin().sum(), trained(m))
    assert_close([original(m).grad], list(expected))


def test_adversarial_training():
    """In the steps of a GAN, each network's value outlives the other's backward pass."""

    def networks():
        torch.manual_seed(4)
        return layer(Sphere()), layer(Sphere())

    def train(weights):
        generator, critic = networks()
        steps = [torch.optim.SGD(m.parameters(), lr=0.05) for m in (generator, critic)]
        torch.manual_seed(9)
        for _ in range(4):
            real, noise = torch.randn(4, 3), torch.randn(4, 3)
            apply = {m: lambda x, m=m: x @ weights(m).T + m.bias for m in (generator, critic)}
            fake = apply[generator](noise)
            steps[1].zero_grad()
            (
                apply[critic](fake.detach()).tanh().mean() - apply[critic](real).tanh().mean()
            ).backward()
            steps[1].step()
            steps[0].zero_grad()
            (-apply[critic](fake).tanh().mean()).backward()
            steps[0].step()
        return [p.detach() for m in (generator, critic) for p in m.parameters()]

    assert_close(train(lambda m: m.weight), train(fresh))


def test_an_old_value_after_a_step_still_has_its_own_derivative():
    """A linear map saves nothing, so autograd allows this without a stored value, and so do we."""
    m = layer(Symmetric())
    loss = m.weight.sum()
    with torch.no_grad():
        original(m).add_(1)
    _ = m.weight
    loss.backward()
    assert_close(original(m).grad, torch.autograd.grad(fresh(m).sum(), trained(m))[0])


@pytest.mark.parametrize("read_again", [True, False])
def test_an_old_value_after_a_step_raises_where_its_derivative_is_gone(read_again):
    m = layer(Sphere())
    loss = m.weight.sum()
    with torch.no_grad():
        original(m).add_(1)
    if read_again:
        _ = m.weight
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    m.weight.sum().backward()
    assert original(m).grad is not None


def test_gradients_of_inputs_only():
    m = layer(Sphere())
    x = torch.randn(3, requires_grad=True)
    (g,) = torch.autograd.grad(m(x).sum(), x)
    assert_close(g, m.weight.detach().sum(0))
    assert original(m).grad is None


def test_gradients_of_some_originals_only():
    m = layer(Outer())
    lists = m.parametrizations.weight
    loss = m.weight.pow(2).sum()
    (found,) = torch.autograd.grad(loss, lists.original1, retain_graph=True)
    (expected,) = torch.autograd.grad(fresh(m).pow(2).sum(), lists.original1)
    assert_close(found, expected)
    loss.backward(inputs=[lists.original0])
    assert lists.original0.grad is not None and lists.original1.grad is None


def test_gradients_of_the_value_itself():
    m = layer(Sphere())
    (g,) = torch.autograd.grad(m(torch.ones(1, 3)).sum(), m.weight)
    assert_close(g, torch.ones(3, 3))


def test_frozen_after_a_read():
    m = layer(Sphere())
    _ = m.weight
    original(m).requires_grad_(False)
    m(torch.ones(1, 3)).sum().backward()
    assert original(m).grad is None
    original(m).requires_grad_(True)
    m(torch.ones(1, 3)).sum().backward()
    assert original(m).grad is not None


def test_parameters_of_a_parametrization_get_their_gradient():
    class Tempered(Foreign):
        def __init__(self):
            super().__init__()
            self.temperature = nn.Parameter(torch.tensor(0.7))

        def forward(self, x):
            return torch.tanh(x * self.temperature)

    for freeze in (False, True):
        m = layer(Tempered())
        original(m).requires_grad_(not freeze)
        temperature = m.parametrizations.weight[0].temperature
        expected = torch.autograd.grad(fresh(m).sum(), temperature)[0]
        with ours.cached():
            m.weight.sum().backward()
            assert_close(temperature.grad, expected)
            with torch.no_grad():
                temperature.add_(1)
            assert_close(m.weight, fresh(m))
        assert (original(m).grad is None) is freeze


# --------------------------------------------------------------------------- higher derivatives


@CONSTRAINTS
def test_gradcheck_through_kept_values(constraint):
    m = layer(constraint()).double()
    x = torch.randn(2, 3, dtype=torch.double)

    def f(*_):
        return m(m(x)) + m.weight.sum()

    assert gradcheck(f, tuple(m.parameters()))
    assert gradgradcheck(f, tuple(m.parameters()))
    assert gradcheck(f, tuple(m.parameters()), check_batched_grad=True)


@CONSTRAINTS
def test_hessian_vector_products(constraint):
    m = layer(constraint()).double()
    loss = (m.weight.sin() @ m.weight.cos()).sum()
    plain = (fresh(m).sin() @ fresh(m).cos()).sum()
    results = []
    for each in (loss, plain):
        first = torch.autograd.grad(each, trained(m), create_graph=True, allow_unused=True)
        scalar = sum((g * torch.linspace(-1, 1, g.numel()).reshape(g.shape)).sum() for g in first)
        if scalar.requires_grad:
            second = torch.autograd.grad(
                scalar, trained(m), create_graph=True, materialize_grads=True
            )
            third = torch.autograd.grad(
                sum(g.pow(2).sum() for g in second), trained(m), materialize_grads=True
            )
            results.append((first, second, third))
        else:
            results.append((first,))
    assert_close(*results)


@pytest.mark.parametrize("retain", [True, False])
@pytest.mark.parametrize("make", [lambda: layer(Sphere()), lambda: layer(Foreign())])
def test_reads_after_a_hessian_vector_product(make, retain):
    """Differentiating a gradient may free its graph; the next read must not use that graph."""
    m = make()
    x = torch.randn(4, 3)

    def penalized(weight):
        out = x @ weight.T
        (g,) = torch.autograd.grad(out.tanh().sum(), trained(m), create_graph=True)
        return g.pow(2).sum() + out.sum()

    with ours.cached():
        for k in range(3):
            m.zero_grad()
            penalized(m.weight).backward(retain_graph=retain)
            (expected,) = torch.autograd.grad(penalized(fresh(m)), trained(m))
            assert_close(original(m).grad, expected)
            m.weight.sin().sum().backward()
            if k:
                with torch.no_grad():
                    original(m).mul_(0.9)


def test_two_gradient_penalties_side_by_side():
    m = layer(Sphere())
    losses = [m.weight.sin().sum(), m.weight.exp().sum()]
    gradients = [torch.autograd.grad(loss, original(m), create_graph=True)[0] for loss in losses]
    for g in gradients:
        g.pow(2).sum().backward()
    expected = torch.zeros(3, 3)
    for f in (torch.sin, torch.exp):
        (g,) = torch.autograd.grad(f(fresh(m)).sum(), original(m), create_graph=True)
        expected += torch.autograd.grad(g.pow(2).sum(), original(m))[0]
    assert_close(original(m).grad, expected)


def test_the_gradient_of_an_input_is_differentiable():
    """As for a critic's gradient penalty: first by the input, then by the originals."""
    m = layer(Sphere())
    x = torch.randn(4, 3, requires_grad=True)
    results = []
    for weight in (lambda: m.weight, lambda: fresh(m)):
        m.zero_grad()
        out = (torch.tanh(x @ weight().T) @ weight().T).sum()
        (g,) = torch.autograd.grad(out, x, create_graph=True)
        (g.norm(dim=1) - 1).pow(2).sum().backward()
        results.append(original(m).grad)
    assert_close(*results)


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True:UserWarning")
def test_backward_with_create_graph():
    m = layer(Sphere())
    m.weight.sin().sum().backward(create_graph=True)
    g = original(m).grad
    original(m).grad = None
    (found,) = torch.autograd.grad(g.pow(2).sum(), original(m))
    (first,) = torch.autograd.grad(fresh(m).sin().sum(), original(m), create_graph=True)
    assert_close(found, torch.autograd.grad(first.pow(2).sum(), original(m))[0])
    m.weight.sum().backward()


@pytest.mark.parametrize("vectorize", [True, False])
def test_jacobian(vectorize):
    m = layer(Sphere())
    x = torch.randn(3)
    found = jacobian(lambda x: torch.tanh(m.weight @ x), x, vectorize=vectorize)
    w = m.weight.detach()
    assert_close(found, (1 - torch.tanh(w @ x) ** 2)[:, None] * w)


def test_batched_gradients():
    m = layer(Sphere())
    w = m.weight
    eye = torch.eye(9).reshape(9, 3, 3)
    (found,) = torch.autograd.grad(w, original(m), eye, is_grads_batched=True, retain_graph=True)
    (expected,) = torch.autograd.grad(fresh(m), original(m), eye, is_grads_batched=True)
    assert_close(found, expected)
    w.sum().backward()


def test_functional_products_of_inputs():
    m = layer(Sphere())
    x, v = torch.randn(3), torch.randn(3)

    def f(x):
        return torch.tanh(m.weight @ x).pow(2).sum()

    w = m.weight.detach()
    expected = torch.func.hessian(lambda x: torch.tanh(w @ x).pow(2).sum())(x) @ v
    assert_close(hvp(f, x, v)[1], expected)
    assert_close(vhp(f, x, v)[1], expected)
    _ = m.weight.sum().backward()


# --------------------------------------------------------------------------------------- hooks


def test_hooks_on_an_original_run_once():
    m = layer(Sphere())
    calls = []
    original(m).register_hook(lambda g: calls.append("gradient"))
    original(m).register_post_accumulate_grad_hook(lambda p: calls.append("accumulated"))
    (m(torch.ones(1, 3)).sum() + m.weight.sum()).backward()
    assert calls == ["gradient", "accumulated"]
    m.weight.sum().backward()
    assert calls == ["gradient", "accumulated"] * 2


def test_a_hook_on_an_original_may_change_the_gradient():
    m = layer(Sphere())
    original(m).register_hook(lambda g: 10 * g)
    _ = m.weight
    m.weight.sin().sum().backward()
    found, original(m)._backward_hooks = original(m).grad, None
    (expected,) = torch.autograd.grad(fresh(m).sin().sum(), original(m))
    assert_close(found, 10 * expected)


def test_optimizer_in_the_backward_pass():
    """A step is taken in a hook as soon as the gradient has been accumulated."""
    m = layer(Sphere())
    optimizer = torch.optim.SGD([original(m)], lr=0.1)

    def take_step(p):
        optimizer.step()
        optimizer.zero_grad()

    original(m).register_post_accumulate_grad_hook(take_step)
    twin = layer(Sphere())
    twin.load_state_dict(m.state_dict())
    steps = torch.optim.SGD([original(twin)], lr=0.1)
    for _ in range(3):
        m(torch.ones(1, 3)).pow(2).sum().backward()
        steps.zero_grad()
        twin(torch.ones(1, 3)).pow(2).sum().backward()
        steps.step()
        assert_close(m.weight, twin.weight)


def test_hooks_and_retain_grad_on_a_value():
    m = layer(Sphere())
    w = m.weight
    seen = []
    w.register_hook(lambda g: seen.append(g.clone()))
    w.retain_grad()
    (3 * w.sum()).backward()
    assert_close(seen, [torch.full((3, 3), 3.0)])
    assert_close(w.grad, torch.full((3, 3), 3.0))


def test_a_hook_on_a_value_lasts_as_one_on_a_parameter():
    m = layer(Sphere())
    calls = []
    handle = m.weight.register_hook(lambda g: calls.append(1))
    for _ in range(2):
        m.weight.sum().backward()
        with torch.no_grad():
            original(m).add_(1)
    assert calls == [1, 1]
    handle.remove()
    m.weight.sum().backward()
    assert calls == [1, 1]


def test_module_hooks():
    m = layer(Sphere())
    calls = []
    m.register_full_backward_hook(lambda *_: calls.append("backward"))
    m.register_forward_hook(lambda *_: calls.append("forward"))
    m(torch.ones(1, 3, requires_grad=True)).sum().backward()
    assert calls == ["forward", "backward"]


def embedding_gradient(P, make, sparse):
    torch.manual_seed(0)
    m = nn.Embedding(5, 3, sparse=sparse)
    with torch.no_grad():
        m.weight.copy_(nn.functional.normalize(m.weight.abs() + 0.1, dim=1))
    P.register_parametrization(m, "weight", make())
    m(torch.tensor([1, 2, 1])).pow(2).sum().backward()
    return original(m).grad.to_dense()


@pytest.mark.parametrize("make", [Positive, Sphere])
def test_sparse_gradients(make):
    """A constraint always gets a dense gradient, even if a sparse one arrives at its value."""
    assert_close(*(embedding_gradient(ours, make, sparse) for sparse in (True, False)))


def test_sparse_gradients_of_a_foreign_module():
    """A foreign module gets them as they are."""
    for P in (ours, torchs):
        with pytest.raises((RuntimeError, NotImplementedError), match="Sparse"):
            embedding_gradient(P, nn.Tanh, True)


def test_gradients_do_not_share_memory():
    m = layer(Symmetric())
    for _ in range(2):
        m.weight.sum().backward()
    first = original(m).grad
    m.weight.sum().backward()
    assert original(m).grad is first
    assert first.data_ptr() != m.weight.data_ptr() != original(m).data_ptr()


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled:UserWarning")
def test_anomaly_detection():
    m = layer(Positive())
    _ = m.weight
    with torch.autograd.detect_anomaly():
        m.weight.sum().backward()
        m.weight.sin().sum().backward()
        with torch.no_grad():
            original(m).fill_(1e9)
        with pytest.raises(RuntimeError, match="returned nan"):
            (m.weight * 0).sum().backward()


def test_gradient_modes_inside_a_backward_pass():
    """A read in a custom function's backward gives the same value as one outside."""
    m = layer(Sphere())

    class Straight(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x @ m.weight.T

        @staticmethod
        def backward(ctx, g):
            return g @ m.weight

    x = torch.ones(1, 3, requires_grad=True)
    reset(m)
    Straight.apply(x).sum().backward()
    assert_close(x.grad, m.weight.detach().sum(0, keepdim=True))
    m(x).sum().backward()
    assert original(m).grad is not None


def test_a_loss_that_outlives_its_module():
    m = layer(Sphere())
    p = original(m)
    loss = m.weight.sin().sum()
    expected = torch.autograd.grad(fresh(m).sin().sum(), p)[0]
    del m
    gc.collect()
    loss.backward()
    assert_close(p.grad, expected)
