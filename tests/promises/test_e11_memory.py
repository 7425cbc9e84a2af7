"""E11: a stored value keeps no model and no graph alive longer than a reader does."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn

import constrained.parametrize as ours
from constrained import constrain, release
from constrained.parametrized.module_class import parametrized_class
from tests.promises.counting import (
    Anchored,
    Foreign,
    Outer,
    Positive,
    Sphere,
    layer,
    original,
)

MAKES = pytest.mark.parametrize("constraint", [Positive, Sphere, Outer, Anchored, Foreign])


def use(m, how):
    x = torch.ones(1, 3)
    if how == "train":
        m(x).pow(2).sum().backward()
    elif how == "eval":
        with torch.no_grad():
            m(x)
    elif how == "inference":
        with torch.inference_mode():
            m(x)
    elif how == "cached":
        with ours.cached():
            m(x), m(x)
    elif how == "create_graph":
        p = next(m.parametrizations.weight.parameters())
        (g,) = torch.autograd.grad(m(x).pow(2).sum(), p, create_graph=True)
        g.pow(2).sum().backward()
    elif how == "value kept":
        return m.weight.detach()
    return None


USES = pytest.mark.parametrize(
    "how", ["nothing", "train", "eval", "inference", "cached", "create_graph", "value kept"]
)


@MAKES
@USES
def test_a_module_dies_with_its_last_reference(constraint, how):
    gc.disable()
    try:
        m = layer(constraint())
        kept = use(m, how)
        refs = [weakref.ref(m), weakref.ref(m.parametrizations.weight)]
        refs += [weakref.ref(p) for p in m.parameters()]
        refs.append(weakref.ref(m.weight))
        del m
        assert [r() for r in refs] == [None] * len(refs)
        del kept
    finally:
        gc.enable()


def tensors():
    gc.collect()
    return sum(1 for o in gc.get_objects() if issubclass(type(o), torch.Tensor))


@MAKES
def test_a_thousand_registrations_leave_nothing_behind(constraint):
    m = nn.Linear(3, 3)
    one = constraint()

    def cycle():
        with torch.no_grad():
            m.weight.copy_(torch.eye(3) + 0.1)
            if hasattr(one, "project"):
                m.weight.copy_(one.project(m.weight))
        ours.register_parametrization(m, "weight", one)
        m(torch.ones(1, 3)).sum().backward()
        m.zero_grad()
        ours.remove_parametrizations(m, "weight")

    for _ in range(3):
        cycle()
    before = tensors()
    for _ in range(1000 if constraint is Positive else 50):
        cycle()
    assert tensors() == before
    assert not m._forward_hooks and not m._load_state_dict_pre_hooks and type(m) is nn.Linear


def test_steps_keep_the_number_of_tensors():
    m = constrain(nn.LSTM(3, 3), "*", Sphere())
    optimizer = torch.optim.SGD(m.parameters(), lr=0.01)

    def step():
        optimizer.zero_grad()
        m(torch.ones(4, 3))[0].sum().backward()
        optimizer.step()
        with torch.no_grad():
            m(torch.ones(4, 3))

    for _ in range(3):
        step()
    before = tensors()
    for _ in range(20):
        step()
    assert tensors() == before


def test_an_evaluation_keeps_no_graph():
    saved = []

    class Probe(Sphere):
        def forward(self, x):
            y = super().forward(x)
            saved.append(weakref.ref(y))
            return y * 1

    m = layer(Probe())
    saved.clear()
    with torch.no_grad():
        _ = m.weight
    assert len(saved) == 1 and saved[0]() is None


def test_a_step_frees_the_graph_before_it():
    graphs = []

    class Probe(Sphere):
        def forward(self, x):
            y = super().forward(x)
            graphs.append(weakref.ref(y))
            return y.exp().log()

    m = layer(Probe())
    graphs.clear()
    for _ in range(4):
        m(torch.ones(1, 3)).sum().backward()
        with torch.no_grad():
            original(m).add_(0.1)
    _ = m.weight
    gc.collect()
    assert sum(g() is not None for g in graphs[:-1]) == 0


def test_a_released_tensor_takes_its_graph_along():
    m = layer(Sphere())
    m(torch.ones(1, 3)).sum().backward()
    lists = weakref.ref(m.parametrizations.weight)
    release(m, "weight")
    gc.collect()
    assert lists() is None


def test_classes_are_freed():
    class Local(nn.Linear):
        pass

    m = ours.register_parametrization(Local(3, 3), "weight", nn.Tanh())
    refs = [weakref.ref(Local), weakref.ref(type(m))]
    assert parametrized_class(Local, ("weight",)) is type(m)
    del m, Local
    gc.collect()
    gc.collect()  # first the class, then its base, which the table of classes kept alive until then
    assert [r() for r in refs] == [None, None]


def test_a_deepcopy_keeps_nothing_of_the_first_alive():
    m = layer(Sphere())
    _ = m.weight
    twin = copy.deepcopy(m)
    ref = weakref.ref(m)
    del m
    gc.collect()
    assert ref() is None and twin.weight.shape == (3, 3)


def test_conversions_free_the_old_memory():
    m = layer(Sphere())
    m(torch.ones(1, 3)).sum().backward()
    value = weakref.ref(m.weight)
    m.double()
    gc.collect()
    assert value() is None
