"""Hooks on the value of a constrained tensor stay from read to read, like hooks on a parameter."""

import copy
import gc
import pickle
import threading
import warnings
import weakref

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.autograd.graph import register_multi_grad_hook
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import constrained.parametrize as ours
from constrained import constrain, get

SPECS = ["sphere", "positive", "orthogonal", "low_rank(rank=3)", "spectral_norm"]


def layer(spec="sphere", n=8):
    torch.manual_seed(0)
    return constrain(nn.Linear(n, n), "weight", spec, init="sample")


def step(m, optimizer=None, apply=None):
    optimizer = optimizer or torch.optim.SGD(m.parameters(), lr=0.1)
    optimizer.zero_grad()
    x = torch.randn(2, m.in_features)
    (m(x) if apply is None else apply(m, x)).pow(2).sum().backward()
    optimizer.step()


@pytest.mark.parametrize("n", [8, 320])
@pytest.mark.parametrize("spec", SPECS)
def test_a_mask_of_the_gradient_lasts(spec, n):
    m, count = layer(spec, n), []
    m.weight.register_hook(lambda g: count.append(1) or g * 0)
    before, optimizer = m.weight.detach().clone(), torch.optim.SGD(m.parameters(), lr=0.1)
    for _ in range(5):
        step(m, optimizer)
    assert len(count) == 5
    torch.testing.assert_close(m.weight.detach(), before)


@pytest.mark.parametrize("spec", SPECS)
def test_a_handle_removes_its_hook_and_no_other(spec):
    m, seen = layer(spec, 320), []
    first = m.weight.register_hook(lambda g: seen.append("first"))
    step(m)
    second = m.weight.register_hook(lambda g: seen.append("second"))
    step(m)
    step(m)
    first.remove()
    step(m)
    second.remove()
    step(m)
    assert seen == ["first", "first", "second", "first", "second", "second"]
    # Nobody listens any more: the layer leaves its weight unread again.
    m.weight  # noqa: B018
    step(m)
    assert m.parametrizations.weight._store.is_unread()


CHANGES = {
    "assignment": lambda m: setattr(m, "weight", m.weight.detach()),
    "loading": lambda m: m.load_state_dict(m.state_dict()),
    "a conversion": lambda m: m.double().float(),
    "a write": lambda m: m.parametrizations.weight.original.data.mul_(2),
    "no gradients": lambda m: torch.no_grad()(lambda: m.weight)(),
    "freezing for a while": lambda m: (
        m.parametrizations.weight.requires_grad_(False),
        m.weight,
        m.parametrizations.weight.requires_grad_(True),
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_hook_outlives(change):
    m, count = layer(), []
    m.weight.register_hook(lambda g: count.append(1))
    change(m)
    step(m)
    assert len(count) == 1


def test_a_lost_write_does_not_take_the_hook_along():
    m, count = layer(), []
    m.weight.register_hook(lambda g: count.append(1))
    with torch.no_grad():
        m.weight.add_(1)
    with pytest.raises(RuntimeError, match="written in place"):
        m.weight  # noqa: B018
    step(m)
    assert len(count) == 1


class Unwatched(get("positive")):
    """Its value is evaluated at each read, since nobody can tell whether the object changes."""

    def __init__(self):
        super().__init__()
        self.something = threading.Lock()

    def __deepcopy__(self, memo):
        return type(self)()


def test_a_value_that_is_not_stored_keeps_its_hooks():
    m, seen = constrain(nn.Linear(4, 4), "weight", Unwatched(), init="sample"), []
    first = m.weight
    assert m.weight is not first
    first.register_hook(lambda g: seen.append("first"))
    handle = m.weight.register_hook(lambda g: seen.append("second"))
    step(m)
    handle.remove()
    step(m)
    assert seen == ["first", "second", "first"]


def test_checkpointed_regions():
    m, count = layer(), []
    m.weight.register_hook(lambda g: count.append(1))
    for _ in range(3):
        step(m, apply=lambda m, x: checkpoint(m, x, use_reentrant=False))
    assert len(count) == 3


def under(make_context):
    def apply(m, x):
        with make_context():
            return m(x)

    return apply


MODES = {
    "vmap": lambda m, x: torch.vmap(m)(x[None])[0],
    "a dispatch mode": under(lambda: FlopCounterMode(display=False)),
    "forward mode": under(forward_ad.dual_level),
}


@pytest.mark.parametrize("is_stored", [True, False])
@pytest.mark.parametrize("apply", MODES.values(), ids=MODES)
@pytest.mark.parametrize("spec", ["sphere", "real", "orthogonal"])
def test_transforms_and_modes(spec, apply, is_stored):
    m, seen = layer(spec), []
    m.weight.register_hook(lambda g: seen.append(type(g)) or g * 0)
    if not is_stored:
        m.parametrizations.weight.forget()
    before = m.weight.detach().clone()
    for _ in range(2):
        step(m, apply=apply)
    assert seen == [torch.Tensor] * 2
    torch.testing.assert_close(m.weight.detach(), before)


def test_a_hook_that_is_registered_in_a_mode_lasts():
    m, seen = layer(), []
    with FlopCounterMode(display=False):
        handle = m.weight.register_hook(lambda g: seen.append(1))
    step(m)
    step(m, apply=MODES["a dispatch mode"])
    handle.remove()
    step(m)
    assert seen == [1, 1]


def test_a_gradient_inside_of_a_transform_calls_none():
    m, seen = layer(), []
    m.weight.register_hook(lambda g: seen.append(1))
    torch.func.grad(lambda x: m(x).sum())(torch.ones(2, 8))
    parameters = {k: p.detach() for k, p in m.named_parameters()}
    torch.func.grad(lambda p: torch.func.functional_call(m, p, torch.ones(2, 8)).sum())(parameters)
    assert not seen


def test_a_hook_is_called_in_other_threads():
    m, seen = layer(), []
    handle = m.weight.register_hook(lambda g: seen.append(1))

    def work():
        for _ in range(3):
            step(m)
        handle.remove()
        step(m)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [1, 1, 1]


def test_a_hook_that_refers_to_its_module_does_not_keep_it():
    m = layer()
    m.weight.register_hook(lambda g, m=m: None)
    step(m)
    m.weight  # noqa: B018
    r = weakref.ref(m)
    del m
    gc.collect()
    assert r() is None


def test_hooks_are_called_in_the_order_of_registration():
    m, seen = layer(), []
    for k in range(4):
        m.weight.register_hook(lambda g, k=k: seen.append(k))
        step(m)
    assert seen == [0, 0, 1, 0, 1, 2, 0, 1, 2, 3]


def test_a_hook_of_many_tensors_ends_with_the_value():
    m, seen = layer(), []
    step(m)
    m.weight.register_hook(lambda g: g)
    step(m)
    register_multi_grad_hook((m.weight, m.bias), lambda g: seen.append([x is None for x in g]))
    first = register_multi_grad_hook((m.weight,), lambda g: seen.append("any"), mode="any")
    step(m)
    assert sorted(map(str, seen)) == ["[False, False]", "any"]
    seen.clear()
    # Of the value it was registered on nothing comes any more; that of the bias does.
    step(m)
    assert sorted(map(str, seen)) == ["[True, False]", "any"]
    first.remove()


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("spec", ["sphere", "orthogonal", "spectral_norm"])
def test_a_hook_that_comes_after_the_forward_pass(spec, create_graph):
    m, x = layer(spec, 16), torch.randn(2, 16)
    step(m)
    results = {}
    for factor in (1, 3):
        m.parametrizations.weight.forget()
        y, seen = m(x), []
        handle = m.weight.register_hook(lambda g, n=factor, seen=seen: seen.append(g) or n * g)
        (found,) = torch.autograd.grad(
            y.sum(), m.parametrizations.weight.original, create_graph=create_graph
        )
        handle.remove()
        torch.testing.assert_close(seen, [x.sum(0).expand(16, 16)])
        results[factor] = found.detach()
    torch.testing.assert_close(results[3], 3 * results[1])


def test_what_has_no_hooks_gets_none():
    m = layer()
    for _ in range(2):
        step(m)
        assert m.weight._backward_hooks is None
    assert not m.parametrizations.weight._store.hooks._known


def test_dictionaries_do_not_pile_up():
    m = layer()
    handles = []
    for _ in range(5):
        handles.append(m.weight.register_hook(lambda g: g))
        step(m)
        handles.pop().remove()
        for _ in range(3):
            step(m)
    m.weight  # noqa: B018
    assert len(m.parametrizations.weight._store.hooks._known) <= 2


def test_hooks_of_each_thread():
    m, seen = layer(), []
    m.weight.register_hook(lambda g: seen.append("here"))
    other = threading.Thread(target=lambda: m.weight.register_hook(lambda g: seen.append("there")))
    other.start()
    other.join()
    step(m)
    seen.clear()
    step(m)
    step(m)
    assert sorted(seen) == ["here", "here", "there", "there"]


def test_the_gradient_of_the_value_is_the_one_that_the_hooks_give():
    m = layer()
    for _ in range(2):
        m.weight.register_hook(lambda g: 2 * g)
        step(m)
    (found,) = torch.autograd.grad(m(torch.ones(2, 8)).sum(), m.weight)
    torch.testing.assert_close(found, torch.full((8, 8), 8.0))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_has_none(copied):
    m, count = layer(), []
    m.weight.register_hook(lambda g: count.append(1))
    step(m)
    count.clear()
    step(copied(m))
    assert not count
    step(m)
    assert count


def test_neither_graphs_nor_old_values_are_kept():
    m = layer()
    m.weight.register_hook(lambda g: g)
    old = []
    for _ in range(3):
        old.append(weakref.ref(m.weight))
        step(m)
    gc.collect()
    assert [r() for r in old] == [None] * 3
    r = weakref.ref(m.parametrizations.weight)
    del m
    gc.collect()
    assert r() is None


def test_values_of_foreign_modules_are_new_ones_as_under_torch():
    m, count = nn.Linear(4, 4), []
    ours.register_parametrization(m, "weight", nn.Softplus(), unsafe=True)
    with ours.cached():
        m.weight.register_hook(lambda g: count.append(1))
        step(m)
    m.weight.register_hook(lambda g: count.append(1))
    step(m)
    assert len(count) == 1


def test_compiled_code_says_that_it_calls_none():
    for registered_before in (True, False):
        torch.compiler.reset()
        m = layer()
        handle = m.weight.register_hook(lambda g: g)
        if registered_before:
            step(m)
        with pytest.warns(UserWarning, match="'weight' .*compiled does not call the hooks"):
            torch.compile(m, backend="eager")(torch.ones(2, 8))
        handle.remove()
        torch.compiler.reset()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            torch.compile(m, backend="eager")(torch.ones(2, 8))
