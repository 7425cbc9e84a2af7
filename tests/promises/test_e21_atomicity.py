"""E21: after a failed registration or removal nothing has changed."""

import importlib

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize as torchs

import constrained.parametrize as ours
from constrained import constrain, rebase, release
from tests.promises.foreign import FailsLater, Scaled, Split, Squash, ids, squashed

torch_today = pytest.mark.torch_today


class Bad:
    """Parametrizations whose registrations fail at different points."""

    class Forward(nn.Module):
        def forward(self, x):
            raise ZeroDivisionError

        def right_inverse(self, y):
            return torch.zeros_like(y)

    class Inverse(nn.Module):
        def forward(self, x):
            return x

        def right_inverse(self, y):
            y.zero_()
            raise ZeroDivisionError

    class Shape(nn.Module):
        def forward(self, x):
            return x[:, :1]

        def right_inverse(self, y):
            return y[:2] * 0

    class Type(nn.Module):
        def forward(self, x):
            return None

        def right_inverse(self, y):
            return y * 0

    class Second(nn.Module):
        def forward(self, a, b):
            return a

        def right_inverse(self, y):
            return y * 0, "text"


def snapshot(m):
    return (
        type(m),
        ids(m),
        list(m.state_dict()),
        {k: v.clone() for k, v in m.state_dict().items()},
        list(m._modules),
        {k: (id(v), v.requires_grad, v.shape, v.stride()) for k, v in m.named_parameters()},
        set(m.__dict__),
    )


def check_same(m, before):
    after = snapshot(m)
    for k, v in before[3].items():
        assert torch.equal(after[3][k], v)
    assert [x for i, x in enumerate(after) if i != 3] == [x for i, x in enumerate(before) if i != 3]


BAD = [Bad.Forward, Bad.Inverse, Bad.Shape, Bad.Type, Bad.Second]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("unsafe", [False, True])
def test_e21_a_failed_registration_leaves_the_module_as_it_was(bad, unsafe):
    m = nn.Linear(3, 3)
    before = snapshot(m)
    try:
        ours.register_parametrization(m, "weight", bad(), unsafe=unsafe)
    except (ZeroDivisionError, ValueError):
        check_same(m, before)
    else:
        assert unsafe


@pytest.mark.parametrize("bad", BAD[:4])
def test_e21_a_failed_second_registration_too(bad):
    m = squashed()
    before = snapshot(m)
    with pytest.raises((ZeroDivisionError, ValueError)):
        ours.register_parametrization(m, "weight", bad())
    check_same(m, before)
    assert len(m.parametrizations.weight) == 1


@pytest.mark.parametrize("bad", BAD)
def test_e21_a_failed_registration_of_another_tensor_too(bad):
    m = squashed()
    m.other = nn.Parameter(torch.rand(3, 3))
    before = snapshot(m)
    with pytest.raises((ZeroDivisionError, ValueError)):
        ours.register_parametrization(m, "other", bad())
    check_same(m, before)


@torch_today
@pytest.mark.parametrize("bad", [Bad.Forward, Bad.Shape, Bad.Type])
def test_e21_in_torch_today(bad):
    m = nn.Linear(3, 3)
    before = m.weight.detach().clone()
    with pytest.raises((ZeroDivisionError, ValueError)):
        torchs.register_parametrization(m, "weight", bad())
    assert m.weight.shape != before.shape or not torch.equal(m.weight, before)


@pytest.mark.parametrize(
    "name", ["keys", "items", "values", "pop", "clear", "update", "tensor_order"]
)
def test_e21_names_that_a_module_dict_has(name):
    m = nn.Module()
    m.register_parameter(name, nn.Parameter(torch.rand(3)))
    before = snapshot(m)
    try:
        ours.register_parametrization(m, name, Scaled())
    except (KeyError, ValueError):
        check_same(m, before)
    else:
        assert getattr(m, name).shape == (3,)


@torch_today
def test_e21_names_in_torch_today():
    m = nn.Module()
    m.keys = nn.Parameter(torch.rand(3))
    with pytest.raises(KeyError):
        torchs.register_parametrization(m, "keys", Scaled())
    assert not list(m.parameters()) and type(m) is not nn.Module


def test_e21_a_class_that_cannot_be_subclassed():
    class Demanding(nn.Linear):
        def __init_subclass__(cls, *, kind, **kwargs):
            super().__init_subclass__(**kwargs)

    m = Demanding(3, 3)
    before = snapshot(m)
    try:
        ours.register_parametrization(m, "weight", Squash())
    except TypeError:
        check_same(m, before)
    else:
        assert m.weight.shape == (3, 3)


def test_e21_an_attribute_that_stands_in_the_way():
    m = nn.Linear(3, 3)
    m.parametrizations = "mine"
    before = snapshot(m)
    with pytest.raises(ValueError, match="parametrizations"):
        ours.register_parametrization(m, "weight", Squash())
    check_same(m, before)


def test_e21_a_tied_place_that_cannot_hold_it():
    m = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Module()})
    m["b"].register_parameter("keys", m["a"].weight)
    before = snapshot(m)
    with pytest.raises((KeyError, ValueError)):
        ours.register_parametrization(m, "a.weight", Squash())
    check_same(m, before)
    assert type(m["a"]) is nn.Linear and type(m["b"]) is nn.Module
    assert m["a"].weight is m["b"].keys


def test_e21_a_refused_removal_changes_nothing():
    m = nn.Linear(3, 3)
    ours.register_parametrization(m, "weight", Split())
    before = snapshot(m)
    with pytest.raises(ValueError, match="Cannot leave unparametrized"):
        ours.remove_parametrizations(m, "weight", leave_parametrized=False)
    check_same(m, before)


def test_e21_a_failed_removal_changes_nothing():
    m = nn.Linear(3, 3)
    ours.register_parametrization(m, "weight", FailsLater())
    m.parametrizations.weight[0].broken = True
    before = snapshot(m)
    with pytest.raises((RuntimeError, AttributeError), match="does_not_exist"):
        ours.remove_parametrizations(m, "weight")
    check_same(m, before)


# -------------------------------------------------------------------------------- interruptions


class Interrupted(nn.Module):
    """A parametrization that the user interrupts, on the n-th call of one of its methods."""

    def __init__(self, method, call):
        super().__init__()
        self.method, self.call, self.calls = method, call, 0

    def _count(self, method):
        if method == self.method:
            self.calls += 1
            if self.calls == self.call:
                raise KeyboardInterrupt

    def forward(self, x):
        self._count("forward")
        return 2 * x

    def right_inverse(self, y):
        self._count("right_inverse")
        return y / 2


@pytest.mark.parametrize("method", ["forward", "right_inverse"])
def test_e21_an_interrupted_registration_changes_nothing(method):
    m = nn.Linear(3, 3)
    before = snapshot(m)
    with pytest.raises(KeyboardInterrupt):
        ours.register_parametrization(m, "weight", Interrupted(method, 1))
    check_same(m, before)


@pytest.mark.parametrize("method", ["forward", "right_inverse"])
def test_e21_several_targets_of_which_the_last_is_interrupted(method):
    m = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3), "c": nn.Linear(3, 3)})
    m["b"].weight = m["a"].weight
    befores = [snapshot(layer) for layer in m.values()]
    optimizer = torch.optim.Adam(m.parameters())
    groups = [list(map(id, group["params"])) for group in optimizer.param_groups]
    specs = {"a.weight": Split(), "a.bias": "positive", "c.weight": Interrupted(method, 1)}
    with pytest.raises(KeyboardInterrupt):
        constrain(m, specs, optimizer=optimizer)
    for layer, before in zip(m.values(), befores, strict=True):
        check_same(layer, before)
    assert m["b"].weight is m["a"].weight
    assert [list(map(id, group["params"])) for group in optimizer.param_groups] == groups


@pytest.mark.parametrize("target", ["c.weight", "**"])
def test_e21_an_interrupted_release_changes_nothing(target):
    m = nn.ModuleDict({"a": nn.Linear(3, 3), "c": nn.Linear(3, 3)})
    constrain(m, "a.weight", "orthogonal")
    constrain(m, "c.weight", Interrupted("forward", 0))
    interrupted = m["c"].parametrizations.weight[0]
    interrupted.call = interrupted.calls + 1
    befores = [snapshot(layer) for layer in m.values()]
    with pytest.raises(KeyboardInterrupt):
        release(m, target)
    interrupted.call = 0
    for layer, before in zip(m.values(), befores, strict=True):
        check_same(layer, before)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_e21_a_release_that_fails_on_the_last_tensor_releases_none(error):
    m = nn.ModuleDict({"a": nn.Linear(3, 3), "c": nn.Linear(3, 3)})
    constrain(m, "a.weight", "orthogonal")
    constrain(m, "c.weight", Interrupted("forward", 0))
    fails = m["c"].parametrizations.weight[0]
    befores = [snapshot(layer) for layer in m.values()]
    fails.forward = lambda x: (_ for _ in ()).throw(error("not now"))
    with pytest.raises(error):
        release(m)
    del fails.forward
    for layer, before in zip(m.values(), befores, strict=True):
        check_same(layer, before)
    release(m)
    assert all(type(layer) is nn.Linear for layer in m.values())


def test_e21_an_interrupted_rebase_changes_nothing():
    m = nn.ModuleDict({"a": nn.Linear(3, 3), "c": nn.Linear(3, 3)})
    constrain(m, "*.weight", "orthogonal(map='cayley')")
    optimizer = torch.optim.SGD(m.parameters(), lr=0.1)
    sum((layer.weight * torch.randn(3, 3)).sum() for layer in m.values()).backward()
    optimizer.step()
    befores = [snapshot(layer) for layer in m.values()]
    last = m["c"].parametrizations.weight[0]
    original_right_inverse = type(last).right_inverse

    def interrupt(self, value):
        if self is last:
            raise KeyboardInterrupt
        return original_right_inverse(self, value)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(last), "right_inverse", interrupt)
        with pytest.raises(KeyboardInterrupt):
            rebase(m)
    for layer, before in zip(m.values(), befores, strict=True):
        check_same(layer, before)


# ------------------------------------------------------------------ failures at every point


class Writes(nn.Module):
    """A parametrization whose right inverse writes state, as torch's ``orthogonal`` does."""

    def __init__(self):
        super().__init__()
        self.register_buffer("base", torch.zeros(3, 3))

    def forward(self, x):
        return x + self.base

    def right_inverse(self, y):
        self.base.copy_(y)
        return torch.zeros_like(y)


def fail_at(patch, where, name, call):
    """Let the n-th call of a function of the engine be interrupted."""
    function, calls = getattr(where, name), []

    def failing(*args, **kwargs):
        calls.append(name)
        if len(calls) == call:
            raise KeyboardInterrupt
        return function(*args, **kwargs)

    patch.setattr(where, name, failing)


def tied_model():
    m = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3), "c": nn.Linear(3, 3)})
    m["b"].weight = m["a"].weight
    m["c"].weight.register_hook(lambda gradient: gradient)
    m["c"].register_forward_hook(lambda *_: None)
    return m


def everything(m, optimizer):
    return (
        [snapshot(layer) for layer in m.values()],
        [[id(p) for p in group["params"]] for group in optimizer.param_groups],
        {id(p): {k: id(v) for k, v in s.items()} for p, s in optimizer.state.items()},
        [dict(layer._forward_hooks) for layer in m.values()],
        [layer.weight.data_ptr() for layer in m.values() if isinstance(layer.weight, nn.Parameter)],
    )


def check_everything(m, optimizer, before):
    for layer, saved in zip(m.values(), before[0], strict=True):
        check_same(layer, saved)
    assert everything(m, optimizer)[1:] == before[1:]
    loss = sum(layer(torch.ones(1, 3)).sum() for layer in m.values())
    loss.backward()
    optimizer.step()


SPECS = {"a.weight": "low_rank(rank=1)", "c.weight": "orthogonal", "c.bias": "positive"}
PLACES = [
    ("constrained.model.changes", "install"),
    ("constrained.registration.install", "set_class"),
]


@pytest.mark.parametrize("call", [1, 2, 3, 4])
@pytest.mark.parametrize(("where", "name"), PLACES)
def test_e21_constraining_is_interrupted_while_the_model_is_written(where, name, call, measured):
    m = tied_model()
    optimizer = torch.optim.Adam(m.parameters())
    sum(layer(torch.ones(1, 3)).sum() for layer in m.values()).backward()
    optimizer.step()
    before = everything(m, optimizer)
    with pytest.MonkeyPatch.context() as patch:
        fail_at(patch, importlib.import_module(where), name, call)
        with pytest.raises(KeyboardInterrupt):
            constrain(m, SPECS, optimizer=optimizer)
    assert m["a"].weight is m["b"].weight
    check_everything(m, optimizer, before)
    measured(f"constrain interrupted in {name}, call {call}: nothing has changed")
    constrain(m, SPECS, optimizer=optimizer)
    assert m["a"].parametrizations.weight is m["b"].parametrizations.weight


@pytest.mark.parametrize("call", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("where", "name"),
    [
        ("constrained.registration.remove", "uninstall"),
        ("constrained.registration.install", "sort"),
    ],
)
def test_e21_a_release_is_interrupted_while_the_model_is_written(where, name, call):
    m = constrain(tied_model(), SPECS)
    optimizer = torch.optim.Adam(m.parameters())
    before = everything(m, optimizer)
    with pytest.MonkeyPatch.context() as patch:
        fail_at(patch, importlib.import_module(where), name, call)
        with pytest.raises(KeyboardInterrupt):
            release(m, optimizer=optimizer)
    assert m["a"].parametrizations.weight is m["b"].parametrizations.weight
    check_everything(m, optimizer, before)


@pytest.mark.parametrize("when", ["registration", "removal", "constrain", "release"])
def test_e21_an_interruption_while_an_optimizer_is_told(when):
    m = nn.ModuleDict({"a": nn.Linear(3, 3)})
    if when in ("removal", "release"):
        constrain(m, "a.weight", Split())
    optimizer = torch.optim.Adam(m.parameters())
    m["a"](torch.ones(1, 3)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    before = everything(m, optimizer)
    with pytest.MonkeyPatch.context() as patch:
        # By then the groups have changed, and the state of the old parameter has been removed.
        fail_at(
            patch,
            importlib.import_module("constrained.registration.param_groups"),
            "_is_original",
            1,
        )
        with pytest.raises(KeyboardInterrupt):
            if when == "registration":
                ours.register_parametrization(m, "a.weight", Split(), optimizer=optimizer)
            elif when == "removal":
                ours.remove_parametrizations(m, "a.weight", optimizer=optimizer)
            elif when == "constrain":
                constrain(m, "a.weight", Split(), optimizer=optimizer)
            else:
                release(m, optimizer=optimizer)
    check_everything(m, optimizer, before)


def test_e21_state_that_a_right_inverse_wrote_is_put_back():
    m = squashed()
    ours.register_parametrization(m, "weight", Writes())
    before = snapshot(m)
    m.parametrizations.weight[0].right_inverse = lambda y: 1 / 0
    with pytest.raises(ZeroDivisionError):
        m.weight = torch.zeros(3, 3)
    del m.parametrizations.weight[0].right_inverse
    check_same(m, before)


def test_e21_a_tensor_that_an_aborted_registration_held_is_free():
    m = nn.Linear(3, 3)
    with pytest.MonkeyPatch.context() as patch:
        fail_at(patch, importlib.import_module("constrained.registration.install"), "set_class", 1)
        with pytest.raises(KeyboardInterrupt) as aborted:
            ours.register_parametrization(m, "weight", Squash())
    # The traceback keeps the failed list alive, but the tensor must not count as tied to it.
    assert aborted.value.__traceback__ is not None
    ours.register_parametrization(m, "weight", Scaled())
    assert [type(p) for p in m.parametrizations.weight] == [Scaled]


def test_e21_a_graph_that_holds_the_tensor_survives_a_failure():
    m = nn.Linear(3, 3)
    loss = m(torch.ones(1, 3, requires_grad=True)).pow(2).sum()
    with pytest.MonkeyPatch.context() as patch:
        fail_at(patch, importlib.import_module("constrained.registration.add"), "install", 1)
        with pytest.raises(KeyboardInterrupt):
            ours.register_parametrization(m, "bias", Squash())
    loss.backward()


@pytest.mark.filterwarnings("error")
def test_e21_a_warning_that_is_an_error_changes_nothing():
    m = nn.Linear(3, 3)
    with torch.no_grad():
        m.weight.fill_(1e-30)
    before = snapshot(m)
    with pytest.raises(UserWarning, match="stay next to the boundary"):
        constrain(m, "weight", "positive")
    check_same(m, before)
    constrain(m, "bias", "box(low=-1, high=1)")
    original = m.parametrizations.bias.original.detach().clone()
    with pytest.raises(UserWarning, match="was assigned a tensor with a graph"):
        m.bias = torch.ones(3, requires_grad=True) * 0.5
    assert torch.equal(m.parametrizations.bias.original, original)
