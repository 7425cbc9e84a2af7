"""E14: tied tensors stay tied."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrize as torchs
from torch.testing import assert_close

import constrained.parametrize as ours
from constrained import constrain, release
from tests.promises.copies import COPIES
from tests.promises.counting import (
    Positive,
    evaluations,
    original,
    reset,
)
from tests.promises.foreign import Scaled, Split

torch_today = pytest.mark.torch_today


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 3)
        self.b = nn.Linear(3, 3, bias=False)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(self.a(x))


def tied_by_path():
    m = Tied()
    with torch.no_grad():
        m.a.weight.abs_().add_(0.1)
    return ours.register_parametrization(m, "a.weight", Positive())


def tied_by_constrain():
    return constrain(Tied(), "b.weight", Positive())


def tied_by_glob():
    return constrain(Tied(), "*.weight", Positive())


TIES = pytest.mark.parametrize("make", [tied_by_path, tied_by_constrain, tied_by_glob])


@TIES
def test_e14_one_constraint_serves_all_owners(make):
    m = make()
    a, b = m.a.parametrizations.weight, m.b.parametrizations.weight
    assert a is b
    assert [n for n, _ in m.named_parameters()] == ["a.parametrizations.weight.original", "a.bias"]
    assert set(m.state_dict()) == {
        "a.parametrizations.weight.original",
        "b.parametrizations.weight.original",
        "a.bias",
    }
    reset(m)
    assert m.a.weight is m.b.weight
    m(torch.ones(1, 3)).sum().backward()
    assert evaluations(m) == 1
    expected = torch.autograd.grad(
        (m.b.weight @ (m.a.weight @ torch.ones(3) + m.a.bias)).sum(), a.original
    )
    assert_close(a.original.grad, expected[0])
    m.b.weight = torch.full((3, 3), 2.0)
    assert_close(m.a.weight.detach(), torch.full((3, 3), 2.0))


@TIES
def test_e14_both_are_released_together(make):
    m = make()
    kept, value = original(m.a), m.a.weight.detach().clone()
    ours.remove_parametrizations(m, "b.weight")
    assert type(m.a) is type(m.b) is nn.Linear
    assert m.a.weight is m.b.weight is kept
    assert_close(m.a.weight.detach(), value)
    assert [n for n, _ in m.named_parameters()] == ["a.weight", "a.bias"]


def test_e14_released_by_release():
    m = release(tied_by_constrain())
    assert type(m.a) is type(m.b) is nn.Linear and m.a.weight is m.b.weight


@TIES
@pytest.mark.parametrize("how", COPIES)
def test_e14_copies_keep_the_tie(make, how):
    m = make()
    twin = how(m)
    assert twin.a.parametrizations.weight is twin.b.parametrizations.weight
    assert twin.a.parametrizations.weight is not m.a.parametrizations.weight
    ours.remove_parametrizations(twin, "a.weight")
    assert twin.a.weight is twin.b.weight and isinstance(twin.a.weight, nn.Parameter)
    assert ours.is_parametrized(m.a) and ours.is_parametrized(m.b)


def test_e14_removal_on_one_owner_leaves_the_other():
    m = tied_by_path()
    value = m.a.weight.detach().clone()
    with pytest.warns(UserWarning, match="'weight' was tied .* outside of this Linear.* given as"):
        ours.remove_parametrizations(m.a, "weight")
    assert isinstance(m.a.weight, nn.Parameter) and ours.is_parametrized(m.b)
    assert m.a.weight is not original(m.b)
    assert_close(m.a.weight.detach(), value)
    assert_close(m.b.weight.detach(), value)
    with torch.no_grad():
        m.a.weight.zero_()
    assert_close(m.b.weight.detach(), value)
    ours.remove_parametrizations(m.b, "weight")
    assert_close(m.b.weight.detach(), value)


def test_e14_a_chain_on_tied_weights():
    m = tied_by_path()
    ours.register_parametrization(m, "b.weight", Positive())
    assert m.a.weight is m.b.weight and len(m.a.parametrizations.weight) == 2
    assert_close(m.a.weight, original(m.b).exp().exp())


def test_e14_training_keeps_the_tie():
    m = tied_by_constrain()
    optimizer = torch.optim.Adam(m.parameters(), lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        m(torch.randn(4, 3)).pow(2).sum().backward()
        optimizer.step()
        assert m.a.weight is m.b.weight
    m.load_state_dict(copy.deepcopy(m.state_dict()))
    assert m.a.weight is m.b.weight
    m.double()
    assert m.a.weight is m.b.weight and m.a.weight.dtype is torch.float64
    out = functional_call(
        m,
        {"a.parametrizations.weight.original": torch.zeros(3, 3).double()},
        (torch.ones(1, 3).double(),),
    )
    assert_close(out.detach(), (torch.ones(3, 3).double() @ (3 + m.a.bias)).detach()[None])


@pytest.mark.parametrize("spec", ["sphere", "low_rank(rank=2)", "orthogonal(map='rebased')"])
@pytest.mark.parametrize("more", [{}, {"tie_weights": False}, {"strict": True}])
@pytest.mark.parametrize("is_named_once", [True, False])
def test_e14_functional_call_leaves_the_originals_where_they_are(spec, more, is_named_once):
    m = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3, bias=False))
    m[1].weight = m[0].weight
    constrain(m, "0.weight", spec)
    before, value, x = [*m.parameters(), *m.buffers()], m[0].weight.detach().clone(), torch.eye(3)
    given: dict[str, torch.Tensor] = {}
    for tensors in (m.named_parameters, m.named_buffers):
        given.update(tensors(remove_duplicate=is_named_once))
    twice = {t: 2 * t.detach() for t in given.values()}
    other = copy.deepcopy(m)
    with torch.no_grad():
        for tensor in (*other.parameters(), *other.buffers()):
            tensor.mul_(2)
    out = functional_call(m, {name: twice[t] for name, t in given.items()}, (x,), **more)
    assert_close(out, other(x).detach())
    assert all(p is q for p, q in zip(before, [*m.parameters(), *m.buffers()], strict=True))
    assert torch.equal(m[0].weight, value) and m[0].weight is m[1].weight
    if is_named_once:
        loss = torch.func.grad(lambda p: functional_call(m, p, (x,), **more).sin().sum())
        loss({name: t.detach() for name, t in given.items()})
    assert all(p is q for p, q in zip(before, [*m.parameters(), *m.buffers()], strict=True))


def test_e14_one_original_has_one_value_in_a_functional_call():
    m = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    m[1].weight = m[0].weight
    constrain(m, "0.weight", "sphere")
    path = "parametrizations.weight.original"
    given = {f"{i}.{path}": torch.full((3, 3), i + 1.0) for i in range(2)}
    for tie_weights in (True, False):
        with pytest.raises(ValueError, match="multiple values"):
            functional_call(m, given, (torch.eye(3),), tie_weights=tie_weights)
    assert_close(m(torch.zeros(1, 3)), m[0].bias @ m[1].weight.mT[None] + m[1].bias)


def test_e14_within_one_module():
    m = nn.Module()
    m.left = nn.Parameter(torch.rand(3) + 0.5)
    m.right = m.left
    root = nn.Sequential(m)
    ours.register_parametrization(root, "0.left", Positive())
    assert m.left is m.right
    ours.remove_parametrizations(root, "0.right")
    assert m.left is m.right and isinstance(m.left, nn.Parameter)


@torch_today
def test_e14_in_torch_today():
    m = Tied()
    torchs.register_parametrization(m.a, "weight", Split())
    with torch.no_grad():
        for p in m.a.parametrizations.weight.parameters():
            p.add_(1)
    assert not torch.allclose(m.a.weight, m.b.weight)
    m = Tied()
    before = m.a.weight.detach().clone()
    for owner in (m.a, m.b):
        torchs.register_parametrization(owner, "weight", Scaled())
    assert_close(m.a.weight.detach(), before / 2)
