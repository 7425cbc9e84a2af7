"""Classes that other libraries derive from the class of a module with parametrized tensors.

Pyro and higher do it with every module of a model. They see what is read, and called, as they do
under torch's own engine.
"""

from __future__ import annotations

import abc
import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize as torchs
from torch.testing import assert_close

import constrained.parametrize as ours
from constrained import constrain, get, names
from tests.promises.foreign import Squash

SPECS = ("orthogonal", "low_rank(rank=2)", "spectral_norm", "positive", "sphere")
LAYERS = {
    "linear": lambda: nn.Linear(4, 4),
    "convolution": lambda: nn.Conv1d(4, 4, 1),
    "embedding": lambda: nn.Embedding(4, 4),
    "norm": lambda: nn.LayerNorm((4, 4)),
}
INPUTS = {
    "linear": torch.randn(2, 4),
    "convolution": torch.randn(2, 4, 5),
    "embedding": torch.tensor([[0, 3]]),
    "norm": torch.randn(2, 4, 4),
}


class Meta(type):
    """The metaclass of somebody else."""


class Seeing(nn.Module, metaclass=Meta):
    """Notes what modules read of themselves, as Pyro does to register parameters."""

    def __getattr__(self, name):
        result = super().__getattr__(name)
        if isinstance(result, (nn.Module, nn.Parameter)):
            self.__dict__.setdefault("seen", []).append(name)
        return result


class FirstOfAll(abc.ABC, nn.Module):
    """A base class that comes before `nn.Module`'s own bases, as that of higher."""


def derive(module, *bases):
    module.__class__ = Meta(f"X{type(module).__name__}", (type(module), *bases), {})
    return module


def derive_all(model, *bases):
    for module in list(model.modules()):
        derive(module, *bases)
    return model


def constrained_layer(kind, spec):
    torch.manual_seed(0)
    m = LAYERS[kind]()
    view = "o i 1 -> o i" if kind == "convolution" else None
    return constrain(m, "weight", spec, **({"view": view} if view else {}))


def losses(m, x, steps=3):
    optimizer = torch.optim.SGD(m.parameters(), lr=0.1)
    found = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (m(x) - 1).square().sum()
        loss.backward()
        optimizer.step()
        found.append(loss.detach())
    assert found[-1] != found[0]
    return torch.stack(found)


@pytest.mark.parametrize("kind", LAYERS)
def test_the_metaclass_is_that_of_the_base(kind):
    assert type(type(constrained_layer(kind, "sphere"))) is type

    class Base(LAYERS[kind]().__class__, metaclass=Meta):
        pass

    m = LAYERS[kind]()
    m.__class__ = Base
    nn.init.constant_(m.weight, 0.5)
    assert type(type(ours.register_parametrization(m, "weight", Squash()))) is Meta


@pytest.mark.parametrize("name", names())
def test_every_module_of_a_constrained_model_can_be_derived(name):
    """With the metaclass of somebody else, and with bases in the order of higher's."""
    cls = get(name)
    kwargs, shape = cls.examples[0]
    m = nn.Module()
    with torch.no_grad():
        constraint = cls(**kwargs)
        generator = torch.Generator().manual_seed(0)
        m.weight = nn.Parameter(constraint.sample(torch.Size((2, *shape)), generator=generator))
    constrain(m, "weight", constraint)
    before = m.weight.detach().clone()
    for module in m.modules():
        abc.ABCMeta("X", (type(module), FirstOfAll), {})
    assert_close(derive_all(m, Seeing).weight.detach(), before)
    m.weight.abs().sum().backward()
    assert m.parametrizations.weight.__dict__["seen"]


@pytest.mark.parametrize("when", ["before", "after", "after, all modules"])
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("kind", LAYERS)
def test_who_sees_what_a_module_reads_sees_its_parametrizations(kind, spec, when):
    x = INPUTS[kind]
    expected = losses(constrained_layer(kind, spec), x)
    if when == "before":
        torch.manual_seed(0)
        m = derive(LAYERS[kind](), Seeing)
        view = {"view": "o i 1 -> o i"} if kind == "convolution" else {}
        constrain(m, "weight", spec, **view)
    else:
        m = constrained_layer(kind, spec)
        (derive if when == "after" else derive_all)(m, Seeing)
    optimizer = torch.optim.SGD(m.parameters(), lr=0.0)
    for call in (lambda: m(x), lambda: m.weight):
        m(x).sum().backward()
        optimizer.step()
        m.__dict__["seen"] = []
        call()
        assert "parametrizations" in m.seen
    assert_close(losses(m, x), expected)


@pytest.mark.parametrize("spec", SPECS)
def test_what_is_given_in_the_place_of_the_parametrizations_is_read(spec):
    class Giving(nn.Linear):
        def __getattr__(self, name):
            instead = self.__dict__.get("instead")
            return instead if instead and name == "parametrizations" else super().__getattr__(name)

    m, other = (constrain(Giving(4, 4), "weight", spec) for _ in range(2))
    m.__dict__["instead"] = other.parametrizations
    x = torch.randn(2, 4)
    assert_close(m.weight, other.weight)
    assert_close(m(x), x @ other.weight.mT + m.bias)


@pytest.mark.parametrize("spec", SPECS)
def test_a_list_of_a_derived_class_is_called(spec):
    """As higher's, which puts tensors of the moment in the place of the originals."""
    m = constrained_layer("linear", spec)
    m(torch.ones(1, 4)).sum().backward()
    torch.optim.SGD(m.parameters(), lr=0.0).step()

    def forward(self):
        return torch.ones(4, 4)

    parametrizations = m.parametrizations.weight
    parametrizations.__class__ = type("X", (type(parametrizations),), {"forward": forward})
    assert_close(m(torch.ones(1, 4)) - m.bias, torch.full((1, 4), 4.0))
    assert_close(m.weight, torch.ones(4, 4))


def test_methods_of_classes_beside_ours_are_called():
    """Those that come after ours in the order of a class that is derived from several."""
    called = []

    class Beside(nn.Linear):
        def __setattr__(self, name, value):
            called.append(name)
            super().__setattr__(name, value)

        def register_buffer(self, name, *args, **kwargs):
            called.append(name)
            super().register_buffer(name, *args, **kwargs)

        def _load_from_state_dict(self, *args, **kwargs):
            called.append("load")
            super()._load_from_state_dict(*args, **kwargs)

        def reset_parameters(self):
            called.append("reset")
            super().reset_parameters()

        def apply(self, fn):
            called.append("apply")
            return super().apply(fn)

    m = derive(constrained_layer("linear", "sphere"), Beside)
    called.clear()
    m.weight = torch.eye(4)
    m.register_buffer("more", torch.ones(1))
    m.load_state_dict(m.state_dict())
    m.reset_parameters()
    m.apply(lambda module: None)
    assert [c for c in called if not c.startswith("_")] == [
        "weight",
        "more",
        "load",
        "reset",
        "apply",
    ]
    assert_close(m.weight.norm(dim=1), torch.ones(4))


def test_a_module_of_a_derived_class_is_copied_as_one():
    m = derive(constrained_layer("linear", "orthogonal"), Seeing)
    twin = copy.deepcopy(m)
    assert type(twin) is type(m)
    assert_close(twin.weight, m.weight)
    with torch.no_grad():
        twin.parametrizations.weight.original.neg_()
    assert_close(twin.weight, -m.weight)


def test_a_class_that_has_its_own_way_into_a_pickle_goes_it():
    class New:
        def __init__(self, base):
            self.__class__ = base

    class Beside(nn.Linear):
        def __reduce__(self):
            return New, (type(self),), self.__getstate__()

    m = derive(constrained_layer("linear", "low_rank(rank=1)"), Beside)
    make, args, state = m.__reduce_ex__(2)[:3]
    assert make is New and args == (type(m),)
    twin = New(type(m))
    twin.__setstate__(copy.deepcopy(state))
    assert_close(twin.weight, m.weight)


def test_parameters_come_in_the_order_of_a_walk_for_who_walks():
    """higher pairs them with those in ``_parameters`` and ``_modules``; others see the places."""
    model = nn.Sequential(constrained_layer("linear", "sphere"), nn.Linear(2, 2))

    def walk(module):
        yield from module._parameters.values()
        for child in module._modules.values():
            yield from walk(child)

    scope = {"__name__": "higher.patch"}
    exec("def listed(module): return [p for p in module.parameters()]", scope)
    assert [id(p) for p in scope["listed"](model)] == [id(p) for p in walk(model)]
    assert next(name for name, _ in model.named_parameters()).endswith("weight.original")


# ---------------------------------------------- torch's own functions, which write into classes


def test_torchs_functions_leave_a_class_of_ours_as_it_is():
    one, other = (constrained_layer("linear", "sphere") for _ in range(2))
    cls, members = type(one), dict(vars(type(one)))
    torchs.register_parametrization(one, "bias", Squash())
    assert type(other) is cls and dict(vars(cls)) == members
    twin = constrained_layer("linear", "sphere")
    ours.register_parametrization(twin, "bias", Squash())
    assert type(one) is type(twin)
    torchs.remove_parametrizations(other, "weight")
    assert type(other) is nn.Linear and dict(vars(cls)) == members
    torchs.remove_parametrizations(one, "bias")
    torchs.remove_parametrizations(one, "weight")
    assert type(one) is nn.Linear
    assert_close(twin.weight.norm(dim=1), torch.ones(4))


def test_torchs_functions_work_on_a_class_that_somebody_has_derived():
    m = derive(constrained_layer("linear", "sphere"), Seeing)
    bias = m.bias.detach().clone()
    torchs.register_parametrization(m, "bias", Squash())
    assert_close(m.bias, bias)
    assert_close(m.weight.norm(dim=1), torch.ones(4))


def test_a_forward_beside_ours_is_called():
    class Beside(nn.Linear):
        def __getattr__(self, name):
            return super().__getattr__(name)

        def forward(self, x):
            return 2 * super().forward(x)

    m = constrain(nn.Linear(4, 4), "weight", "orthogonal")
    x = torch.ones(1, 4)
    expected = m(x)
    m.__class__ = type("Derived", (type(m), Beside), {})
    torch.testing.assert_close(m(x), 2 * expected)


def test_torch_removes_from_a_class_that_was_derived():
    m = constrain(nn.Linear(4, 4), "weight", "orthogonal")
    value = m.weight.detach().clone()
    m.__class__ = type("Derived", (type(m),), {})
    torch.nn.utils.parametrize.remove_parametrizations(m, "weight")
    torch.testing.assert_close(m.weight, value)


class Copied(nn.Module):
    """Made as higher makes its modules: by a constructor of its own, and then of the attributes."""

    def __init__(self, original_params, root):
        nn.Module.__init__(self)


@pytest.mark.parametrize("spec", ["orthogonal", "low_rank(rank=2)", "interval(low=-2.0, high=3.0)"])
def test_a_class_with_a_constructor_of_its_own_has_the_arguments_of_the_constraint(spec):
    before = constrain(nn.Linear(4, 4), "weight", spec).parametrizations.weight[0]
    members = {"__init__": Copied.__init__}
    derived = type("Inner", (type(before), Copied), members)(None, None)
    vars(derived).update(vars(before))
    assert (derived.arguments(), derived.spec()) == (before.arguments(), before.spec())
    assert repr(derived) == repr(before)


class WithoutPersistent(nn.Linear):
    def register_buffer(self, name, tensor):
        super().register_buffer(name, tensor)


@pytest.mark.parametrize("persistent", [True, False])
def test_a_buffer_is_assigned_to_a_constrained_module(persistent):
    m = constrain(nn.Linear(3, 3), "weight", "sphere")
    m.mask = nn.Buffer(torch.ones(2), persistent=persistent)
    assert ("mask" in m.state_dict()) is persistent and "mask" in dict(m.named_buffers())
    m = constrain(WithoutPersistent(3, 3), "weight", "sphere")
    m.mask = nn.Buffer(torch.ones(2))
    assert "mask" in m.state_dict()
