"""E15: assignment copies and checks."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn.utils import parametrize as torchs
from torch.testing import assert_close

import constrained.parametrize as ours
from constrained import constrain, writable
from tests.promises.counting import (
    Sphere,
    layer,
    original,
)
from tests.promises.foreign import Split, squashed

torch_today = pytest.mark.torch_today


def check_assignment_copies(P):
    m = nn.Linear(3, 3)
    P.register_parametrization(m, "weight", ReturnsItsInput())
    mine = torch.full((3, 3), 0.5)
    m.weight = mine
    with torch.no_grad():
        original(m).add_(1)
    assert torch.equal(mine, torch.full((3, 3), 0.5))
    mine.zero_()
    assert_close(m.weight.detach(), torch.full((3, 3), 1.5))


class ReturnsItsInput(nn.Module):
    def forward(self, x):
        return x * 1

    def right_inverse(self, y):
        return y


class SplitsViews(nn.Module):
    def forward(self, a, b):
        return torch.stack((a, b))

    def right_inverse(self, y):
        return y[0], y[1]


def check_assignment_ties_nothing(P):
    new = torch.full((3, 3), 0.5)
    layers = [
        P.register_parametrization(nn.Linear(3, 3), "weight", ReturnsItsInput()) for _ in "ab"
    ]
    for m in layers:
        m.weight = new
    with torch.no_grad():
        original(layers[0]).zero_()
    assert_close(layers[1].weight.detach(), torch.full((3, 3), 0.5))


def check_assignment_of_an_expanded_tensor(P):
    m = P.register_parametrization(nn.Linear(3, 3), "weight", ReturnsItsInput())
    m.weight = torch.zeros(()).expand(3, 3)
    m(torch.ones(1, 3)).sum().backward()
    torch.optim.SGD(m.parameters(), lr=1.0).step()
    assert_close(m.weight.detach(), torch.full((3, 3), -1.0))


def check_assignment_of_another_shape(P):
    m = P.register_parametrization(nn.Linear(4, 4), "weight", ReturnsItsInput())
    with pytest.raises(ValueError, match=r"\(7, 9\).*\(4, 4\)"):
        m.weight = torch.zeros(7, 9)
    assert m.weight.shape == (4, 4)


CHECKS_OF_ASSIGNMENT = [
    (check_assignment_copies, AssertionError),
    (check_assignment_ties_nothing, AssertionError),
    (check_assignment_of_an_expanded_tensor, RuntimeError),
    (check_assignment_of_another_shape, pytest.fail.Exception),
]


@pytest.mark.parametrize("check", [c for c, _ in CHECKS_OF_ASSIGNMENT])
def test_e15_assignment(check):
    check(ours)


@torch_today
@pytest.mark.parametrize(("check", "error"), CHECKS_OF_ASSIGNMENT)
def test_e15_in_torch_today(check, error):
    with pytest.raises(error):
        check(torchs)


def test_e15_several_originals_share_no_memory_with_the_value():
    m = nn.Module()
    m.w = nn.Parameter(torch.rand(2, 3))
    value = m.w.detach()
    ours.register_parametrization(m, "w", SplitsViews())
    lists = m.parametrizations.w
    places = {t.untyped_storage().data_ptr() for t in (value, lists.original0, lists.original1)}
    assert len(places) == 3
    m.w = new = torch.ones(2, 3)
    places = {t.untyped_storage().data_ptr() for t in (new, lists.original0, lists.original1)}
    assert len(places) == 3


def test_e15_dtype_and_device_are_checked():
    m = squashed()
    before = m.weight.detach().clone()
    with pytest.raises(ValueError, match=r"float64.*float32.*value\.to\(torch\.float32\)"):
        m.weight = torch.zeros(3, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match="meta"):
        m.weight = torch.zeros(3, 3, device="meta")
    with pytest.raises(TypeError, match="list"):
        m.weight = [[0.0]]
    assert_close(m.weight.detach(), before)


@pytest.mark.parametrize("bad", ["shape", "dtype", "outside", "nan"])
def test_e15_a_failed_assignment_changes_nothing(bad):
    m = layer(Sphere())
    before, kept = copy.deepcopy(m.state_dict()), original(m)
    value = {
        "shape": torch.ones(2, 3),
        "dtype": nn.functional.normalize(torch.ones(3, 3)).double(),
        "outside": torch.full((3, 3), 5.0),
        "nan": torch.full((3, 3), torch.nan),
    }[bad]
    with pytest.raises(ValueError):
        m.weight = value
    assert original(m) is kept
    for k, v in m.state_dict().items():
        assert torch.equal(v, before[k])


def test_e15_a_failed_assignment_to_several_originals_changes_nothing():
    class Sometimes(Split):
        def right_inverse(self, y):
            a, b = super().right_inverse(y)
            return a, (b.double() if y.sum() > 100 else b)

    m = nn.Linear(3, 3)
    ours.register_parametrization(m, "weight", Sometimes())
    before = m.weight.detach().clone()
    with pytest.raises(ValueError, match="Tensor 1 returned by"):
        m.weight = torch.full((3, 3), 100.0)
    assert_close(m.weight.detach(), before)


def test_e15_a_parameter_can_be_assigned():
    m = squashed()
    new = nn.Parameter(torch.full((3, 3), 0.5))
    m.weight = new
    assert_close(m.weight.detach(), new.detach())
    assert original(m) is not new and "weight" not in m._parameters


@pytest.mark.parametrize("compiled", [False, True])
def test_e15_a_tensor_with_a_graph_is_assigned_with_a_warning(compiled):
    m, source = squashed(), torch.full((3, 3), 0.5, requires_grad=True)

    def assign(source):
        m.weight = source * 1

    run = torch.compile(assign, backend="eager") if compiled else assign
    with pytest.warns(UserWarning, match="'weight' .*functional_call"):
        run(source)
    assert original(m).is_leaf
    m.weight.sum().backward()
    assert source.grad is None


def test_e15_a_tangent_is_assigned_with_a_warning():
    m, source = squashed(), torch.full((3, 3), 0.5)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(source, source)
        with pytest.warns(UserWarning, match="functional_call"):
            m.weight = dual
        assert forward_ad.unpack_dual(m.weight).tangent is None


def test_e15_numbers_are_assigned_without_a_warning():
    m, source = squashed(), torch.full((3, 3), 0.5, requires_grad=True)
    m.weight = source
    m.weight = (source * 1).detach()
    with torch.no_grad():
        m.weight = source * 1
    m.parametrizations.weight.right_inverse((source * 1).detach())
    assert_close(m.weight.detach(), source.detach())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("make", [squashed, layer, lambda: layer(Split())])
@pytest.mark.parametrize("block", [nullcontext, writable])
def test_e15_what_the_dtype_holds_is_assigned(dtype, make, block):
    m = make().double()
    value = torch.full((3, 3), 0.5, dtype=dtype)
    with block(m):
        m.weight = value
    assert all(p.dtype is torch.float64 for p in (m.weight, *m.parameters()))
    assert_close(m.weight.detach(), value.double())


def test_e15_whole_numbers_are_assigned_unless_they_would_be_rounded():
    m = constrain(nn.Linear(1, 1), "weight", "real")
    with pytest.raises(TypeError, match="floating-point.*int64"):
        m.weight = torch.tensor([[2**24 + 1]])
    m.weight = torch.tensor([[2**24]])
    assert m.weight == 2**24


def test_e15_what_assignment_checks(measured):
    m = squashed()
    before, refused = m.weight.detach().clone(), 0
    for bad in (torch.zeros(2, 3), torch.zeros(3, 3).double(), torch.zeros(3, 3, device="meta")):
        with pytest.raises(ValueError):
            m.weight = bad
        refused += 1
    assert_close(m.weight.detach(), before)
    measured(f"a copy; {refused} of {refused} of another shape, dtype or device refused")


@torch_today
def test_e15_what_assignment_checks_in_torch_today(measured):
    m = torchs.register_parametrization(nn.Linear(4, 4), "weight", ReturnsItsInput())
    m.weight = new = torch.zeros(7, 9)
    assert original(m).data_ptr() == new.data_ptr()
    measured(f"Linear(4, 4) takes {tuple(m.weight.shape)}, and shares the memory")
