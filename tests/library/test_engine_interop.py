"""torch's and geotorch's functions on modules of this engine, and ours on theirs."""

import copy
import pickle

import geotorch
import geotorch.constraints as geotorch_constraints
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations as torch_parametrizations
from torch.nn.utils import parametrize as torchs
from torch.testing import assert_close

import constrained.parametrize as ours
from constrained import constrain, release
from tests.promises.counting import (
    Positive,
    Sphere,
    evaluations,
    layer,
    original,
    reset,
)


class Halved(nn.Module):
    def forward(self, x):
        return x / 2

    def right_inverse(self, y):
        return 2 * y


class Split(nn.Module):
    def forward(self, a, b):
        return a + b

    def right_inverse(self, y):
        return y / 3, 2 * y / 3


def still_works(m):
    """A module of ours reads, trains, is assigned, copied and removed."""
    x = torch.ones(2, 3)
    before = m.weight.detach().clone()
    m.zero_grad()
    m(x).pow(2).sum().backward()
    assert all(p.grad is not None for p in m.parameters())
    torch.optim.SGD(m.parameters(), lr=0.01).step()
    assert not torch.equal(m.weight, before)
    m.weight = before
    assert_close(m.weight.detach(), before)
    assert_close(copy.deepcopy(m)(x), m(x))
    assert_close(pickle.loads(pickle.dumps(m))(x), m(x))


# ------------------------------------------------------------- torch's functions on modules of ours


def test_torch_recognizes_ours():
    m = layer()
    assert torchs.is_parametrized(m) and torchs.is_parametrized(m, "weight")
    assert not torchs.is_parametrized(m, "bias")
    assert torchs.type_before_parametrizations(m) is nn.Linear
    assert isinstance(m.parametrizations.weight, torchs.ParametrizationList)


@pytest.mark.parametrize("leave", [True, False])
def test_torch_removes_ours(leave):
    m, others = layer(), [layer() for _ in range(2)]
    kept, value, raw = original(m), m.weight.detach().clone(), original(m).detach().clone()
    _ = [other.weight for other in others]
    torchs.remove_parametrizations(m, "weight", leave_parametrized=leave)
    assert type(m) is nn.Linear and not hasattr(m, "parametrizations")
    assert m.weight is kept and m.weight.requires_grad
    assert_close(m.weight.detach(), value if leave else raw)
    m(torch.ones(1, 3)).sum().backward()
    torch.optim.SGD(m.parameters(), lr=0.1).step()
    for other in others:
        still_works(other)
    still_works(layer())


def test_torch_removes_one_of_two():
    m, twin = (constrain(layer(), "bias", Halved()) for _ in range(2))
    bias = m.bias.detach().clone()
    torchs.remove_parametrizations(m, "weight")
    assert isinstance(m.weight, nn.Parameter) and torchs.is_parametrized(m, "bias")
    assert_close(m.bias.detach(), bias)
    assert torchs.type_before_parametrizations(m) is nn.Linear
    copied = pickle.loads(pickle.dumps(copy.deepcopy(m)))
    assert_close(copied.bias, m.bias)
    with torch.no_grad():
        m.weight.zero_()
    assert torch.count_nonzero(m.weight) == 0 and torch.count_nonzero(twin.weight) == 9
    m.weight = nn.Parameter(torch.ones(3, 3))
    assert_close(m.weight.detach(), torch.ones(3, 3))
    still_works(twin)
    ours.register_parametrization(m, "weight", Halved())
    still_works(m)
    torchs.remove_parametrizations(m, "bias")
    torchs.remove_parametrizations(m, "weight")
    assert type(m) is nn.Linear
    still_works(twin)


def test_torch_removes_several_originals():
    m = ours.register_parametrization(nn.Linear(3, 3), "weight", Split())
    twin = ours.register_parametrization(nn.Linear(3, 3), "weight", Split())
    value = m.weight.detach().clone()
    torchs.remove_parametrizations(m, "weight")
    assert type(m) is nn.Linear and isinstance(m.weight, nn.Parameter)
    assert_close(m.weight.detach(), value)
    still_works(twin)
    still_works(twin)


def test_torch_registers_a_second_tensor():
    m, sibling = layer(), layer()
    torchs.register_parametrization(m, "bias", Halved())
    bias = original(m, "bias")
    assert_close(m.bias, bias / 2)
    assert isinstance(sibling.bias, nn.Parameter) and isinstance(sibling.bias, torch.Tensor)
    still_works(m)
    still_works(sibling)
    assert_close(m.bias, bias / 2)
    twin = copy.deepcopy(m)
    torchs.register_parametrization(sibling, "bias", Split())
    assert_close(m.bias, bias / 2)
    torchs.remove_parametrizations(sibling, "bias")
    assert isinstance(sibling.bias, nn.Parameter)
    still_works(twin)
    ours.remove_parametrizations(m, "bias")
    assert isinstance(m.bias, nn.Parameter) and ours.is_parametrized(m, "weight")
    ours.remove_parametrizations(m, "weight")
    assert type(m) is nn.Linear
    still_works(twin)
    still_works(sibling)


def test_torch_leaves_siblings_compilable():
    """What torch writes into a class must not stop dynamo on other modules of that class."""
    torch._dynamo.reset()
    x = torch.ones(2, 3)

    def compiles(m):
        assert_close(torch.compile(m, backend="eager", fullgraph=True)(x), m(x))

    m, sibling = layer(), layer()
    torchs.register_parametrization(m, "bias", Halved())
    compiles(sibling)
    compiles(m)
    torchs.remove_parametrizations(m, "weight")
    compiles(m)
    compiles(sibling)
    both, other = (constrain(layer(), "bias", Halved()) for _ in "ab")
    torchs.remove_parametrizations(both, "bias")
    compiles(both)
    compiles(other)
    compiles(layer())


def test_torch_appends_to_ours():
    m, sibling = layer(), layer()
    value = m.weight.detach().clone()
    torchs.register_parametrization(m, "weight", Halved())
    assert len(m.parametrizations.weight) == 2
    assert_close(m.weight.detach(), value / 2)
    still_works(m)
    still_works(sibling)
    assert len(sibling.parametrizations.weight) == 1
    torchs.remove_parametrizations(m, "weight")
    still_works(sibling)


def test_torch_nests_inside_ours():
    m, sibling = layer(Sphere()), layer(Sphere())
    torchs.register_parametrization(m.parametrizations.weight, "original", Halved())
    inner = m.parametrizations.weight.parametrizations.original.original
    for _ in range(2):
        assert_close(m.weight, nn.functional.normalize(inner / 2, dim=1))
        with torch.no_grad():
            inner.add_(torch.rand(3, 3))
    m.weight.sum().backward()
    assert inner.grad is not None
    torchs.remove_parametrizations(m.parametrizations.weight, "original")
    assert type(m.parametrizations.weight) is ours.ParametrizationList
    still_works(m)
    still_works(sibling)


def test_torchs_cached_caches_ours():
    class Foreign(Halved):
        pass

    m = ours.register_parametrization(nn.Linear(3, 3), "weight", Foreign())
    with torchs.cached():
        w = m.weight
        assert m.weight is w
        with torch.no_grad():
            original(m).add_(1)
        assert_close(m.weight, original(m) / 2)
    assert m.weight is not m.weight
    with torchs.cached():
        assert m.weight is m.weight is not w


def test_our_cached_on_a_module_of_torchs_is_harmless():
    m = torchs.register_parametrization(nn.Linear(3, 3), "weight", Halved())
    with ours.cached():
        assert_close(m.weight, m.weight)


def test_torch_transfers_ours():
    a = layer()
    b = ours.remove_parametrizations(copy.deepcopy(a), "weight")
    torchs.transfer_parametrizations_and_params(a, b)
    assert_close(a.weight, b.weight)
    assert torchs.is_parametrized(b, "weight")


@pytest.mark.parametrize("name", ["spectral_norm", "weight_norm", "orthogonal"])
def test_torchs_own_parametrizations_over_ours(name):
    """torch's own functions register on a module whose bias is parametrized by ours."""
    m, sibling = (ours.register_parametrization(nn.Linear(3, 3), "bias", Halved()) for _ in "ab")
    getattr(torch_parametrizations, name)(m)
    x = torch.ones(2, 3)
    m(x).sum().backward()
    assert all(p.grad is not None for p in m.parameters())
    m.eval()
    assert_close(copy.deepcopy(m)(x), m(x))
    sibling(x)
    value = m.weight.detach().clone()
    ours.remove_parametrizations(m, "weight")
    assert_close(m.weight.detach(), value)
    torchs.remove_parametrizations(m, "bias")
    assert type(m) is nn.Linear
    assert_close(sibling.bias, original(sibling, "bias") / 2)


# ------------------------------------------------------------- our functions on modules of torch's


def torch_layer(*names):
    m = nn.Linear(3, 3)
    for name in names or ("weight",):
        torchs.register_parametrization(m, name, Halved())
    return m


def test_we_recognize_torchs():
    m = torch_layer()
    assert ours.is_parametrized(m) and ours.is_parametrized(m, "weight")
    assert ours.type_before_parametrizations(m) is nn.Linear


@pytest.mark.parametrize("leave", [True, False])
def test_we_remove_torchs(leave):
    m, twin = torch_layer("weight", "bias"), torch_layer("weight", "bias")
    kept, value = original(m), (m.weight if leave else original(m)).detach().clone()
    ours.remove_parametrizations(m, "weight", leave_parametrized=leave)
    assert m.weight is kept and ours.is_parametrized(m, "bias")
    assert_close(m.weight.detach(), value)
    ours.remove_parametrizations(m, "bias")
    assert type(m) is nn.Linear and not hasattr(m, "parametrizations")
    twin(torch.ones(1, 3)).sum().backward()
    assert original(twin).grad is not None
    assert sorted(n for n, _ in m.named_parameters()) == ["bias", "weight"]


def test_we_append_to_torchs():
    m = torch_layer()
    value, kept = m.weight.detach().clone(), original(m)
    keys = set(m.state_dict())
    ours.register_parametrization(m, "weight", Halved())
    assert_close(m.weight.detach(), value / 2)
    assert original(m) is kept and set(m.state_dict()) == keys
    still_works(m)


def test_we_register_a_second_tensor_beside_torchs():
    m = torch_layer()
    value = m.weight.detach().clone()
    ours.register_parametrization(m, "bias", Split())
    assert_close(m.weight.detach(), value)
    still_works(m)
    ours.remove_parametrizations(m, "bias")
    ours.remove_parametrizations(m, "weight")
    assert type(m) is nn.Linear


def test_we_constrain_over_torchs():
    m = torch_layer()
    with torch.no_grad():
        original(m).abs_().add_(0.1)
    ours.register_parametrization(m, "weight", Positive())
    assert_close(m.weight, (original(m) / 2).exp())
    still_works(m)


def test_we_copy_nothing_of_torchs_by_accident():
    m = torch_layer()
    twin = copy.deepcopy(m)
    ours.register_parametrization(m, "bias", Halved())
    assert type(twin) is not type(m) and isinstance(twin.bias, nn.Parameter)
    assert_close(twin.weight, m.weight)


# --------------------------------------------------------------------------------------- geotorch

GEOTORCH = [
    (geotorch.orthogonal, ()),
    (geotorch.sphere, ()),
    (geotorch.skew, ()),
    (geotorch.low_rank, (2,)),
    (geotorch.symmetric, ()),
    (geotorch.positive_definite, ()),
]


@pytest.fixture(params=["as it is", "on our engine"])
def geotorch_engine(request, monkeypatch):
    if request.param == "on our engine":
        monkeypatch.setattr(geotorch_constraints, "parametrize", ours)
    return request.param


@pytest.mark.parametrize(("function", "args"), GEOTORCH)
def test_geotorch(geotorch_engine, function, args):
    """Alone, and beside a tensor parametrized by ours, with a second module of the class."""
    x = torch.ones(2, 4)
    for beside in (False, True):
        m = nn.Linear(4, 4)
        sibling = nn.Linear(4, 4)
        if beside:
            for each in (m, sibling):
                ours.register_parametrization(each, "bias", Halved())
        function(m, "weight", *args)
        for _ in range(3):
            m.zero_grad()
            m(x).pow(2).sum().backward()
            torch.optim.SGD(m.parameters(), lr=0.01).step()
        gradients = [p.grad for p in m.parameters() if p.requires_grad]
        assert all(g is not None and torch.isfinite(g).all() for g in gradients)
        if function is geotorch.orthogonal:
            assert_close(m.weight @ m.weight.mT, torch.eye(4), atol=1e-5, rtol=0)
        if function is not geotorch.symmetric:
            value = m.weight.detach().clone()
            m.weight = value
            assert_close(m.weight.detach(), value, atol=1e-4, rtol=1e-4)
            if hasattr(m.parametrizations.weight[0], "sample"):
                m.weight = m.parametrizations.weight[0].sample()
        assert_close(copy.deepcopy(m)(x), m(x))
        value = m.weight.detach().clone()
        ours.remove_parametrizations(m, "weight")
        assert_close(m.weight.detach(), value)
        sibling(x)
        if beside:
            ours.remove_parametrizations(m, "bias")
        assert type(m) is nn.Linear


def test_geotorch_over_ours_on_the_same_tensor(geotorch_engine):
    m = ours.register_parametrization(nn.Linear(4, 4), "weight", Halved())
    geotorch.skew(m, "weight")
    assert_close(m.weight, -m.weight.mT)
    m(torch.ones(1, 4)).sum().backward()
    assert original(m).grad is not None


def test_ours_over_geotorch_on_the_same_tensor():
    m = nn.Linear(4, 4)
    geotorch.skew(m, "weight")
    ours.register_parametrization(m, "weight", nn.Tanh())
    assert_close(m.weight, -m.weight.mT)
    m(torch.ones(1, 4)).sum().backward()
    assert original(m).grad is not None


def test_geotorch_in_cached_evaluates_once():
    manifold = geotorch.so.SO((4, 4))
    m = nn.Linear(4, 4)
    with torch.no_grad():
        m.weight.copy_(manifold.sample())
    ours.register_parametrization(m, "weight", manifold)
    with ours.cached():
        assert m.weight is m.weight


def test_release_takes_what_others_parametrized_by_path_only():
    m = nn.Sequential(torch_layer(), layer(), nn.Linear(4, 4))
    geotorch.orthogonal(m[2], "weight")
    x = torch.ones(1, 3)
    expected, classes = m[1](m[0](x)), [type(c) for c in m]
    release(m)
    with pytest.raises(ValueError, match="'0.weight', which others parametrized, by its path"):
        release(m, "*.weight")
    assert [type(c) for c in m] == classes
    for i in range(3):
        release(m, f"{i}.weight")
    assert [type(c) for c in m] == [nn.Linear] * 3
    assert_close(m[1](m[0](x)), expected)


def test_ours_counts_are_not_disturbed_by_a_sibling_of_torchs():
    a, b = layer(), layer()
    torchs.register_parametrization(b, "bias", Halved())
    reset(a, b)
    for _ in range(5):
        a(torch.ones(1, 3)), b(torch.ones(1, 3))
    assert evaluations(a) == 1 and evaluations(b) == 1


def test_a_sibling_may_hold_a_plain_attribute_of_a_name_that_torch_parametrized():
    # Torch's own function writes a property into the class, which both modules share.
    one, other = layer(Sphere()), layer(Sphere())
    assert type(one) is type(other)
    torchs.register_parametrization(one, "bias", nn.Tanh())
    # As pruning and FSDP do.
    bias = other.bias
    del other._parameters["bias"]
    assert not hasattr(other, "bias")
    other.bias = 2 * bias.detach()
    assert torch.equal(other.bias, 2 * bias)
    del other.bias
    assert not hasattr(other, "bias")
    with pytest.raises(AttributeError, match="bias"):
        del other.bias
    other.register_parameter("bias", bias)
    assert other.bias is bias
