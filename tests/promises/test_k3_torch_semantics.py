"""Behaviour of ``torch.nn.utils.parametrize`` that this engine shares.

Nearly every test runs on both engines: the expectations are torch's own. Where the two differ on
purpose, the test runs on this engine alone and says so.
"""

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations as torch_parametrizations
from torch.nn.utils import parametrize as torch_parametrize
from torch.testing import assert_close
from torch.testing._internal.two_tensor import TwoTensor

import constrained.parametrize as our_parametrize


@pytest.fixture(
    params=[
        pytest.param(our_parametrize, id="constrained"),
        pytest.param(torch_parametrize, id="torch", marks=pytest.mark.torch_today),
    ]
)
def P(request):
    return request.param


class Skew(nn.Module):
    def forward(self, x):
        x = x.tril(-1)
        return x - x.mT


class Cayley(nn.Module):
    def forward(self, a):
        one = torch.eye(a.shape[-1], dtype=a.dtype)
        return torch.linalg.solve(one + a, one - a).contiguous()


class FirstRow(nn.Module):
    def forward(self, x):
        return x[:1]


class Same(nn.Module):
    def forward(self, x):
        return x


class Doubled(nn.Module):
    def forward(self, x):
        return 2 * x

    def right_inverse(self, y):
        return y / 2


class ZeroAt(nn.Module):
    def __init__(self, index):
        super().__init__()
        self.index = index

    def forward(self, x):
        keep = torch.ones_like(x)
        keep[self.index] = 0
        return x * keep


class RankOneFactors(nn.Module):
    def forward(self, u, v):
        return torch.outer(u, v)

    def right_inverse(self, w):
        u, s, vh = torch.linalg.svd(w, full_matrices=False)
        return u[:, 0] * s[0], vh[0]


class SumOf(nn.Module):
    def forward(self, *terms):
        return sum(terms)

    def right_inverse(self, w):
        return [w / 4, 3 * w / 4]


# ------------------------------------------------------------------------ registering and removing


def check_plain(module, cls=nn.Linear):
    assert type(module) is cls
    assert not hasattr(module, "parametrizations")


def test_registration_moves_the_parameter_into_the_list(P):
    m = nn.Linear(5, 5)
    weight = m.weight
    assert P.register_parametrization(m, "weight", Skew()) is m
    assert P.is_parametrized(m) and P.is_parametrized(m, "weight")
    assert not P.is_parametrized(m, "bias")
    assert "weight" not in m._parameters and "bias" in m._parameters
    assert m.parametrizations.weight.original is weight
    assert isinstance(m.parametrizations, nn.ModuleDict)
    assert isinstance(m.parametrizations.weight, P.ParametrizationList)
    assert isinstance(m, nn.Linear) and type(m) is not nn.Linear
    assert type(m).__name__ == "ParametrizedLinear"
    assert_close(m.weight, -m.weight.mT)
    assert {n for n, _ in m.named_parameters()} == {"bias", "parametrizations.weight.original"}


def test_removal_gives_back_the_original(P, swap_mode):
    m = nn.Linear(5, 5)
    weight, before = m.weight, m.weight.detach().clone()
    P.register_parametrization(m, "weight", Skew())
    assert P.remove_parametrizations(m, "weight", leave_parametrized=False) is m
    check_plain(m)
    assert m.weight is weight
    assert_close(m.weight.detach(), before, rtol=0, atol=0)


def test_removal_can_leave_the_value(P, swap_mode):
    m = nn.Linear(5, 5)
    weight = m.weight
    P.register_parametrization(m, "weight", Skew())
    P.register_parametrization(m, "weight", Cayley())
    value = m.weight.detach().clone()
    P.remove_parametrizations(m, "weight")
    check_plain(m)
    assert m.weight is weight and isinstance(m.weight, nn.Parameter) and m.weight.requires_grad
    assert_close(m.weight.detach(), value)
    assert_close(m.weight @ m.weight.mT, torch.eye(5))


def test_training_goes_on_with_the_same_optimizer_through_all_of_it(P, swap_mode):
    m = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(m.parameters(), lr=0.1)

    def step_changes_both():
        before = m.weight.detach().clone(), m.bias.detach().clone()
        optimizer.zero_grad()
        (m.weight.mT @ m.bias).sum().backward()
        optimizer.step()
        assert not torch.equal(m.weight.detach(), before[0])
        assert not torch.equal(m.bias.detach(), before[1])

    P.register_parametrization(m, "weight", Skew())
    P.register_parametrization(m, "weight", Cayley())
    P.register_parametrization(m, "bias", ZeroAt(0))
    P.register_parametrization(m, "bias", ZeroAt(-1))
    assert len(list(m.parameters())) == 2
    step_changes_both()
    assert m.bias[0] == 0 and m.bias[-1] == 0
    P.remove_parametrizations(m, "weight", leave_parametrized=False)
    assert P.is_parametrized(m, "bias") and not P.is_parametrized(m, "weight")
    assert m.bias[0] == 0
    step_changes_both()
    P.remove_parametrizations(m, "bias", leave_parametrized=False)
    check_plain(m)
    step_changes_both()
    assert m.bias[0] != 0
    for _ in range(2):
        P.register_parametrization(m, "weight", Skew())
        P.remove_parametrizations(m, "weight")
        step_changes_both()


def test_a_shape_may_change_only_under_unsafe(P, swap_mode):
    m = nn.Linear(4, 4)
    weight = m.weight
    with pytest.raises(ValueError, match="may not change the shape of the tensor"):
        P.register_parametrization(m, "weight", FirstRow())
    P.register_parametrization(m, "weight", FirstRow(), unsafe=True)
    assert m.weight.shape == (1, 4)
    P.register_parametrization(m, "weight", Same())
    assert m.weight.shape == (1, 4) and m.parametrizations.weight.unsafe
    P.remove_parametrizations(m, "weight", leave_parametrized=False)
    check_plain(m)
    assert m.weight is weight and m.weight.shape == (4, 4)


def test_unsafe_changes_nothing_else(P):
    m = nn.Linear(4, 4)
    P.register_parametrization(m, "weight", Skew(), unsafe=True)
    assert_close(m.weight, -m.weight.mT)


def test_unsafe_stays_once_it_was_said(P):
    m = nn.Linear(4, 4)
    P.register_parametrization(m, "weight", Same())
    assert not m.parametrizations.weight.unsafe
    P.register_parametrization(m, "weight", FirstRow(), unsafe=True)
    P.register_parametrization(m, "weight", Same())
    assert m.parametrizations.weight.unsafe


def test_an_original_can_be_parametrized_itself(P, swap_mode):
    m = nn.Linear(4, 4)
    P.register_parametrization(m, "weight", Doubled())
    inner = m.parametrizations.weight
    raw = inner.original
    P.register_parametrization(inner, "original", Skew())
    assert P.is_parametrized(inner) and P.is_parametrized(inner, "original")
    assert "original" not in inner._parameters
    assert inner.parametrizations.original.original is raw
    assert_close(inner.original, -inner.original.mT)
    assert_close(m.weight, 2 * inner.original)
    P.remove_parametrizations(inner, "original", leave_parametrized=False)
    assert type(inner) is P.ParametrizationList and not hasattr(inner, "parametrizations")
    P.remove_parametrizations(m, "weight", leave_parametrized=False)
    check_plain(m)


def test_a_buffer_can_be_parametrized(P, swap_mode):
    m = nn.Module()
    m.register_buffer("matrix", torch.randn(3, 3))
    buffer, before = m.matrix, m.matrix.clone()
    P.register_parametrization(m, "matrix", Skew())
    assert "matrix" not in m._buffers and not list(m.parameters())
    assert m.parametrizations.matrix.original is buffer
    assert [n for n, _ in m.named_buffers()] == ["parametrizations.matrix.original"]
    assert_close(m.matrix, -m.matrix.mT)
    P.remove_parametrizations(m, "matrix", leave_parametrized=False)
    check_plain(m, nn.Module)
    assert m.matrix is buffer and "matrix" in m._buffers
    assert_close(m.matrix, before)


def test_two_tensors_of_a_module_come_and_go_independently(P):
    m = nn.Linear(4, 4)
    for name in ("weight", "bias"):
        P.register_parametrization(m, name, Doubled())
    P.remove_parametrizations(m, "weight")
    assert P.is_parametrized(m, "bias") and isinstance(m.weight, nn.Parameter)
    assert P.type_before_parametrizations(m) is nn.Linear
    P.register_parametrization(m, "weight", Doubled())
    P.remove_parametrizations(m, "bias")
    P.remove_parametrizations(m, "weight")
    check_plain(m)


def test_under_no_grad_a_registered_parameter_still_trains(P):
    m = nn.Linear(3, 3)
    with torch.no_grad():
        P.register_parametrization(m, "weight", RankOneFactors())
        P.register_parametrization(m, "bias", Doubled())
    assert all(p.requires_grad for p in m.parameters()) and len(list(m.parameters())) == 3
    m(torch.randn(2, 3)).sum().backward()
    assert all(p.grad is not None for p in m.parameters())


@pytest.mark.parametrize("requires_grad", [True, False])
def test_requires_grad_passes_to_every_original(P, requires_grad):
    m = nn.Linear(3, 3)
    m.weight.requires_grad_(requires_grad)
    P.register_parametrization(m, "weight", SumOf())
    originals = [m.parametrizations.weight.original0, m.parametrizations.weight.original1]
    assert all(isinstance(p, nn.Parameter) for p in originals)
    assert [p.requires_grad for p in originals] == [requires_grad] * 2
    assert m.weight.requires_grad is requires_grad


# ------------------------------------------------------------------------------------- state dicts


def test_state_dict_keys(P):
    m = nn.Linear(3, 3)
    P.register_parametrization(m, "weight", SumOf())
    P.register_parametrization(m, "bias", Doubled())
    assert set(m.state_dict()) == {
        "parametrizations.weight.original0",
        "parametrizations.weight.original1",
        "parametrizations.bias.original",
    }


def test_state_dict_round_trip_through_a_file(P, swap_mode):
    def model():
        m = nn.Linear(4, 4)
        P.register_parametrization(m, "weight", Skew())
        P.register_parametrization(m, "weight", Cayley())
        return m

    source, target = model(), model()
    file = io.BytesIO()
    torch.save(source.state_dict(), file)
    file.seek(0)
    assert not torch.equal(source.weight, target.weight)
    target.load_state_dict(torch.load(file, weights_only=True))
    assert_close(source.weight, target.weight)
    assert_close(source.bias, target.bias)


def test_state_of_a_parametrization_has_its_place_in_the_state_dict(P):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("gain", torch.tensor(3.0))
            self.shift = nn.Parameter(torch.zeros(()))

        def forward(self, x):
            return self.gain * x + self.shift

    m = nn.Linear(3, 3)
    P.register_parametrization(m, "weight", Same())
    P.register_parametrization(m, "weight", Scaled())
    assert {"parametrizations.weight.1.gain", "parametrizations.weight.1.shift"} <= set(
        m.state_dict()
    )


# -------------------------------------------------------------------------------------- assignment


def test_assignment_goes_through_the_right_inverses_from_last_to_first(P, swap_mode):
    log = []

    class Logged(nn.Module):
        def __init__(self, name):
            super().__init__()
            self.name = name

        def forward(self, x):
            log.append(f"{self.name}")
            return x + 1

        def right_inverse(self, y):
            log.append(f"{self.name} inverted")
            return y - 1

    m = nn.Linear(3, 3)
    P.register_parametrization(m, "weight", Logged("a"))
    P.register_parametrization(m, "weight", Logged("b"))
    kept = m.parametrizations.weight.original
    log.clear()
    m.weight = torch.full((3, 3), 5.0)
    assert log == ["b inverted", "a inverted"]
    assert m.parametrizations.weight.original is kept
    assert_close(kept.detach(), torch.full((3, 3), 3.0))
    log.clear()
    assert_close(m.weight.detach(), torch.full((3, 3), 5.0))
    assert log == ["a", "b"]


def test_registration_keeps_the_value_where_there_is_a_right_inverse(P, swap_mode):
    m = nn.Linear(3, 3)
    before = m.weight.detach().clone()
    P.register_parametrization(m, "weight", Doubled())
    assert_close(m.weight.detach(), before)
    assert_close(m.parametrizations.weight.original.detach(), before / 2)


def test_a_second_registration_leaves_the_originals_alone(P):
    m = nn.Linear(3, 3)
    P.register_parametrization(m, "weight", Doubled())
    before = m.parametrizations.weight.original.detach().clone()
    P.register_parametrization(m, "weight", Doubled())
    assert_close(m.parametrizations.weight.original.detach(), before)
    assert_close(m.weight.detach(), 4 * before)


def test_assignment_of_several_originals(P, swap_mode):
    m = nn.Linear(3, 3)
    P.register_parametrization(m, "weight", SumOf())
    kept = m.parametrizations.weight.original0
    new = torch.randn(3, 3)
    m.weight = new
    assert m.parametrizations.weight.original0 is kept
    assert_close(kept.detach(), new / 4)
    assert_close(m.weight.detach(), new)


def test_assignment_needs_a_right_inverse(P):
    m = nn.Linear(3, 3)
    P.register_parametrization(m, "weight", Skew())
    with pytest.raises(RuntimeError, match="parametrization Skew does not implement right_inverse"):
        m.weight = torch.zeros(3, 3)


def test_a_right_inverse_may_refuse_on_assignment(P):
    class Refuses(Same):
        def right_inverse(self, y):
            raise NotImplementedError("no way back")

    m = nn.Linear(3, 3)
    P.register_parametrization(m, "weight", Refuses())
    with pytest.raises(NotImplementedError, match="no way back"):
        m.weight = torch.zeros(3, 3)


# ------------------------------------------------------------------- errors of a first registration


class Returns(nn.Module):
    """A parametrization that returns what it is told to."""

    def __init__(self, forward=None, right_inverse=None):
        super().__init__()
        self.answer = forward or (lambda x: x)
        if right_inverse is not None:
            self.right_inverse = right_inverse

    def forward(self, *x):
        return self.answer(*x)


def test_there_must_be_such_a_tensor(P):
    m = nn.Linear(3, 3)
    with pytest.raises(ValueError, match="does not have a parameter, a buffer, or a parametrized"):
        P.register_parametrization(m, "foo", Same())
    m.attribute = torch.ones(3)
    with pytest.raises(ValueError, match="'attribute'"):
        P.register_parametrization(m, "attribute", Same())
    check_plain(m)


def test_there_must_be_something_to_remove(P):
    m = nn.Linear(3, 3)
    with pytest.raises(ValueError, match="does not have a parametrization on weight"):
        P.remove_parametrizations(m, "weight")
    P.register_parametrization(m, "weight", Same())
    with pytest.raises(ValueError, match="does not have a parametrization on bias"):
        P.remove_parametrizations(m, "bias")
    with pytest.raises(ValueError, match="does not have a parametrization on foo"):
        P.remove_parametrizations(m, "foo")


@pytest.mark.parametrize(
    ("parametrization", "message"),
    [
        (Returns(lambda x: None), "A parametrization must return a tensor. Got NoneType."),
        (
            Returns(right_inverse=lambda x: None),
            "'right_inverse' must return a Tensor or a Sequence of tensors (list, tuple...). "
            "Got NoneType",
        ),
        (
            Returns(right_inverse=lambda x: {x}),
            "'right_inverse' must return a Tensor or a Sequence of tensors (list, tuple...). "
            "Got set",
        ),
        (
            Returns(right_inverse=lambda x: (x, None)),
            "Got element 1 of the sequence with type NoneType.",
        ),
        (
            Returns(lambda x: x.double()),
            "Registering a parametrization may not change the dtype of the tensor, unless "
            "`unsafe` flag is enabled.\nunparametrized dtype: torch.float32\n"
            "parametrized dtype: torch.float64",
        ),
        (
            Returns(lambda x: x[:-1]),
            "Registering a parametrization may not change the shape of the tensor, unless "
            "`unsafe` flag is enabled.\nunparametrized shape: torch.Size([3, 3])\n"
            "parametrized shape: torch.Size([2, 3])",
        ),
        (
            Returns(lambda x: x.float(), right_inverse=lambda x: x.double()),
            "When `right_inverse` outputs one tensor, it may not change the dtype.\n"
            "original.dtype: torch.float32\nright_inverse(original).dtype: torch.float64",
        ),
        (
            Returns(lambda x: x, right_inverse=lambda x: x.to("meta")),
            "When `right_inverse` outputs one tensor, it may not change the device.\n"
            "original.device: cpu\nright_inverse(original).device: meta",
        ),
    ],
)
def test_what_a_first_registration_refuses(P, parametrization, message):
    m = nn.Linear(3, 3)
    older = P is torch_parametrize and "device" in message
    # Torch 2.6 sets the storage of a parameter first, which raises with another message.
    with pytest.raises((ValueError, RuntimeError) if older else ValueError) as caught:
        P.register_parametrization(m, "weight", parametrization)
    assert message in str(caught.value) or (older and "set the storage" in str(caught.value))
    check_plain(m)


@pytest.mark.parametrize(
    ("forward", "right_inverse"),
    [
        (lambda x: x.bool(), lambda x: x),
        (lambda x: x[:1], lambda x: x),
        (lambda x: x[:1], lambda x: x[:2]),
    ],
)
def test_unsafe_lifts_the_checks_of_the_value(P, forward, right_inverse):
    m = nn.Linear(3, 3)
    P.register_parametrization(m, "weight", Returns(forward, right_inverse), unsafe=True)
    assert_close(m.weight, forward(m.parametrizations.weight.original))


@pytest.mark.parametrize(
    "right_inverse", [lambda x: x.double(), lambda x: None, lambda x: (x, "text")]
)
def test_unsafe_does_not_lift_the_checks_of_the_originals(P, right_inverse):
    m = nn.Linear(3, 3)
    with pytest.raises(ValueError):
        P.register_parametrization(m, "weight", Returns(right_inverse=right_inverse), unsafe=True)
    check_plain(m)


def test_a_list_needs_a_parametrization(P):
    with pytest.raises(ValueError, match="requires one or more modules"):
        P.ParametrizationList([], torch.ones(2))


# ------------------------------------------------------------------ errors of a second registration


@pytest.mark.parametrize(
    ("parametrization", "message"),
    [
        (Returns(lambda x: None), "A parametrization must return a tensor. Got NoneType."),
        (
            Returns(lambda x: x.double()),
            "Registering a parametrization may not change the dtype of the tensor, unless the "
            "`unsafe` flag is enabled.\nmodule.weight.dtype: torch.float32\n"
            "parametrization(module.weight).dtype: torch.float64",
        ),
        (
            Returns(lambda x: x[:-1]),
            "Registering a parametrization may not change the shape of the tensor, unless the "
            "`unsafe` flag is enabled.\nmodule.weight.shape: torch.Size([3, 3])\n"
            "parametrization(module.weight).shape: torch.Size([2, 3])",
        ),
        (
            Returns(right_inverse=lambda x: None),
            "parametrization.right_inverse must return a tensor. Got: NoneType",
        ),
        (
            Returns(right_inverse=lambda x: (x, x)),
            "parametrization.right_inverse must return a tensor. Got: tuple",
        ),
        (
            Returns(right_inverse=lambda x: x.double()),
            "The tensor returned by parametrization.right_inverse must have the same dtype as "
            "module.weight, unless the `unsafe` flag is enabled.\n"
            "module.weight.dtype: torch.float32\nreturned dtype: torch.float64",
        ),
        (
            Returns(right_inverse=lambda x: x[:-1]),
            "The tensor returned by parametrization.right_inverse must have the same shape as "
            "module.weight, unless the `unsafe` flag is enabled.\n"
            "module.weight.shape: torch.Size([3, 3])\nreturned shape: torch.Size([2, 3])",
        ),
    ],
)
def test_what_a_second_registration_refuses(P, parametrization, message):
    m = nn.Linear(3, 3)
    P.register_parametrization(m, "weight", Doubled())
    value = m.weight.detach().clone()
    with pytest.raises(ValueError) as caught:
        P.register_parametrization(m, "weight", parametrization)
    assert str(caught.value) == message
    assert len(m.parametrizations.weight) == 1 and not m.parametrizations.weight.unsafe
    assert_close(m.weight.detach(), value)


@pytest.mark.parametrize("right_inverse", [lambda x: None, lambda x: x.double(), lambda x: x[:-1]])
def test_unsafe_lifts_the_checks_of_a_second_registration(P, right_inverse):
    m = nn.Linear(3, 3)
    P.register_parametrization(m, "weight", Doubled())
    P.register_parametrization(
        m, "weight", Returns(lambda x: x[:-1].double(), right_inverse), unsafe=True
    )
    assert m.weight.shape == (2, 3) and m.weight.dtype is torch.float64


def test_a_second_right_inverse_that_is_not_implemented_is_none(P):
    class Refuses(Same):
        def right_inverse(self, y):
            raise NotImplementedError

    m = nn.Linear(3, 3)
    P.register_parametrization(m, "weight", Doubled())
    P.register_parametrization(m, "weight", Refuses())
    assert len(m.parametrizations.weight) == 2


def test_what_an_assignment_refuses(P):
    answer = {}
    m = nn.Linear(3, 3)
    P.register_parametrization(m, "weight", Returns(right_inverse=lambda x: answer.get("x", x)))
    before = m.parametrizations.weight.original.detach().clone()
    for bad, message in [
        (None, "`right_inverse` should return a tensor. Got NoneType"),
        (
            torch.zeros(3, 3).double(),
            "The tensor returned by `right_inverse` has dtype torch.float64 while `original` has "
            "dtype torch.float32",
        ),
    ]:
        answer["x"] = bad
        with pytest.raises(ValueError) as caught:
            m.weight = torch.zeros(3, 3)
        # Here the message starts with the tensor's path.
        assert str(caught.value).removeprefix("'weight': ") == message
    assert_close(m.parametrizations.weight.original.detach(), before)


def test_what_an_assignment_to_several_originals_refuses(P):
    answer = {}
    m = nn.Linear(3, 3)
    P.register_parametrization(
        m, "weight", Returns(lambda x, y: x + y, lambda w: answer.get("x", (w, 0 * w)))
    )
    zero = torch.zeros(3, 3)
    for bad, message in [
        (zero, "'right_inverse' must return a sequence of tensors. Got Tensor."),
        (
            (zero,),
            "'right_inverse' must return a sequence of tensors of length 2. Got a sequence of "
            "length 1.",
        ),
        (
            (zero, zero.double()),
            "Tensor 1 returned by `right_inverse` has dtype torch.float64 while `original1` has "
            "dtype torch.float32",
        ),
    ]:
        answer["x"] = bad
        with pytest.raises(ValueError) as caught:
            m.weight = torch.ones(3, 3)
        # Here the message starts with the tensor's path.
        assert str(caught.value).removeprefix("'weight': ") == message
    answer["x"] = (zero, None)
    with pytest.raises(ValueError, match="Got element 1 of type NoneType"):
        m.weight = torch.ones(3, 3)


# ------------------------------------------------------------------------------ several originals


def test_several_originals(P, swap_mode):
    m = nn.Linear(4, 3)
    bias = m.bias
    P.register_parametrization(m, "weight", RankOneFactors())
    assert {n for n, _ in m.named_parameters()} == {
        "bias",
        "parametrizations.weight.original0",
        "parametrizations.weight.original1",
    }
    assert not m.parametrizations.weight.is_tensor and m.parametrizations.weight.ntensors == 2
    assert not hasattr(m.parametrizations.weight, "original")
    assert torch.linalg.matrix_rank(m.weight.detach()) == 1
    with pytest.raises(ValueError, match="Cannot leave unparametrized"):
        P.remove_parametrizations(m, "weight", leave_parametrized=False)
    assert P.is_parametrized(m, "weight")
    value = m.weight.detach().clone()
    P.remove_parametrizations(m, "weight")
    check_plain(m)
    assert isinstance(m.weight, nn.Parameter) and m.bias is bias
    assert m.weight.is_leaf and m.weight.requires_grad
    assert_close(m.weight.detach(), value)


def test_several_originals_under_others_that_take_one(P):
    m = nn.Linear(3, 3)
    value = m.weight.detach().clone()
    P.register_parametrization(m, "weight", SumOf())
    P.register_parametrization(m, "weight", Doubled())
    assert_close(m.weight.detach(), 2 * value)
    m.weight = value
    assert_close(m.weight.detach(), value)
    assert_close(m.parametrizations.weight.original0.detach(), value / 8)


def test_originals_of_different_shape_and_dtype(P):
    class Gathered(nn.Module):
        def forward(self, values, index):
            return values[index]

        def right_inverse(self, w):
            values, index = torch.unique(w, return_inverse=True)
            return values, index

    m = nn.Module()
    m.register_buffer("codes", torch.tensor([1.0, 2.0, 1.0]))
    P.register_parametrization(m, "codes", Gathered())
    assert m.parametrizations.codes.original1.dtype is torch.int64
    assert_close(m.codes, torch.tensor([1.0, 2.0, 1.0]))


def test_a_sequence_of_one_original(P):
    class One(Same):
        def right_inverse(self, w):
            return (w.clone(),)

    m = nn.Linear(3, 3)
    value = m.weight.detach().clone()
    P.register_parametrization(m, "weight", One())
    assert not m.parametrizations.weight.is_tensor and m.parametrizations.weight.ntensors == 1
    assert_close(m.weight.detach(), value)
    assert "parametrizations.weight.original0" in m.state_dict()


# ------------------------------------------------------------------------------------------- cached


def test_cached_reads_are_one_object(P):
    m = nn.Linear(3, 3)
    P.register_parametrization(m, "weight", Skew())
    P.register_parametrization(m, "bias", Doubled())
    with P.cached():
        x, y = m.weight, m.weight
        assert x is y and m.bias is m.bias
        with P.cached():
            assert m.weight is x
        assert m.weight is x
    assert m.weight is not x


def test_cached_is_left_on_an_error(P):
    m = nn.Linear(3, 3)
    P.register_parametrization(m, "weight", Skew())
    with pytest.raises(ZeroDivisionError), P.cached():
        raise ZeroDivisionError
    assert m.weight is not m.weight


def test_cached_keeps_modules_apart_after_a_transfer(P):
    a, b = nn.Linear(3, 3), nn.Linear(3, 3)
    P.register_parametrization(a, "weight", Doubled())
    P.transfer_parametrizations_and_params(a, b)
    with P.cached():
        assert a.weight is a.weight and b.weight is b.weight
        assert a.weight is not b.weight


# --------------------------------------------------------------------- training flag, class, copies


def test_a_parametrization_takes_the_training_flag_of_its_module(P):
    m = nn.Linear(3, 3)
    assert m.training
    first, second = Same().eval(), Same().eval()
    P.register_parametrization(m, "weight", first)
    P.register_parametrization(m, "weight", second)
    assert first.training and second.training
    m.eval()
    assert not first.training and not second.training
    third = Same()
    P.register_parametrization(m, "bias", third)
    assert not third.training
    m.train()
    assert third.training


def test_type_before_parametrizations(P):
    m = nn.Linear(3, 3)
    assert P.type_before_parametrizations(m) is nn.Linear
    P.register_parametrization(m, "weight", Same())
    assert P.type_before_parametrizations(m) is nn.Linear and type(m) is not nn.Linear
    P.register_parametrization(m, "bias", Same())
    assert P.type_before_parametrizations(m) is nn.Linear
    P.remove_parametrizations(m, "weight")
    P.remove_parametrizations(m, "bias")
    assert P.type_before_parametrizations(m) is nn.Linear is type(m)


def check_copy(m, P):
    P.register_parametrization(m, "weight", Doubled())
    P.register_parametrization(m, "bias", ZeroAt(0))
    m.note = {"a": [1, 2]}
    twin = copy.deepcopy(m)
    assert twin.__dict__.keys() == m.__dict__.keys()
    assert isinstance(twin, P.type_before_parametrizations(m))
    assert twin.note == m.note and twin.note is not m.note
    assert_close(twin.weight, m.weight)
    assert twin.parametrizations.weight.original is not m.parametrizations.weight.original
    assert twin.parametrizations.weight[0] is not m.parametrizations.weight[0]
    with torch.no_grad():
        twin.parametrizations.weight.original.zero_()
    assert torch.count_nonzero(twin.weight) == 0 and torch.count_nonzero(m.weight) > 0
    return twin


def test_deepcopy(P):
    check_copy(nn.Linear(3, 3), P)


def test_deepcopy_of_a_copy(P):
    m = nn.Linear(3, 3)
    P.register_parametrization(m, "weight", Doubled())
    assert_close(copy.deepcopy(copy.deepcopy(m)).weight, m.weight)


def test_deepcopy_calls_the_modules_own_method(P):
    class OwnCopy(nn.Linear):
        def __deepcopy__(self, memo):
            twin = self.__new__(type(self))
            memo[id(self)] = twin
            twin.__dict__ = copy.deepcopy(self.__dict__, memo)
            twin.__dict__["copied"] = self.__dict__["copied"] + 1
            return twin

    m = OwnCopy(3, 3)
    m.copied = 0
    assert check_copy(m, P).copied == 1


def test_deepcopy_takes_slots_along(P):
    class Slotted(nn.Linear):
        __slots__ = ("empty", "extra")

        def __init__(self):
            super().__init__(3, 3)
            self.extra = [torch.ones(2)]

    m = Slotted()
    twin = check_copy(m, P)
    assert_close(twin.extra, m.extra)
    assert twin.extra[0] is not m.extra[0] and not hasattr(twin, "empty")


def test_deepcopy_inside_a_container_respects_the_memo(P):
    m = nn.Linear(3, 3)
    P.register_parametrization(m, "weight", Doubled())
    twin = copy.deepcopy(nn.ModuleList([m, m]))
    assert twin[0] is twin[1] and twin[0] is not m


# ----------------------------------------------------------------------------------------- transfer


def test_transfer(P):
    a, b = nn.Linear(3, 3), nn.Linear(3, 3)
    P.register_parametrization(a, "weight", Doubled())
    P.register_parametrization(a, "weight", Same())
    assert P.transfer_parametrizations_and_params(a, b) is b
    assert P.is_parametrized(b, "weight") and not P.is_parametrized(b, "bias")
    assert [type(x) for x in b.parametrizations.weight.children()] == [Doubled, Same]
    assert_close(b.parametrizations.weight.original, a.parametrizations.weight.original)
    assert_close(b.weight, a.weight)
    assert len(list(b.parameters())) == 2


def test_transfer_from_a_plain_module_does_nothing(P):
    a, b = nn.Linear(3, 3), nn.Linear(3, 3)
    assert P.transfer_parametrizations_and_params(a, b) is b
    check_plain(b)


def test_transfer_creates_what_the_target_lacks(P):
    a, b = nn.Linear(3, 3), nn.Linear(3, 3)
    a.extra = nn.Parameter(torch.randn(2))
    P.register_parametrization(a, "extra", Doubled())
    P.transfer_parametrizations_and_params(a, b)
    assert P.is_parametrized(b, "extra")
    assert_close(b.extra, a.extra)


def test_transfer_of_one_tensor_by_name(P):
    a, b = nn.Linear(3, 3), nn.Linear(3, 3)
    P.register_parametrization(a, "weight", Doubled())
    P.register_parametrization(a, "bias", Doubled())
    P.transfer_parametrizations_and_params(a, b, "bias")
    assert P.is_parametrized(b, "bias") and not P.is_parametrized(b, "weight")
    assert_close(b.bias, a.bias)


def test_transfer_of_several_originals(P):
    a, b = nn.Linear(3, 3), nn.Linear(3, 3)
    P.register_parametrization(a, "weight", RankOneFactors())
    P.register_parametrization(a, "weight", Doubled())
    P.transfer_parametrizations_and_params(a, b)
    assert b.parametrizations.weight.ntensors == 2
    for name in ("original0", "original1"):
        assert_close(
            getattr(b.parametrizations.weight, name), getattr(a.parametrizations.weight, name)
        )
    assert_close(b.weight, a.weight)


# ---------------------------------------------------------- torch's own parametrizations, on ours


@pytest.fixture
def N(P, monkeypatch):
    """``torch.nn.utils.parametrizations`` on top of either engine."""
    monkeypatch.setattr(torch_parametrizations, "parametrize", P)
    return torch_parametrizations


def test_spectral_norm(P, N):
    m = N.spectral_norm(nn.Linear(5, 7))
    assert set(m.state_dict()) == {
        "bias",
        "parametrizations.weight.original",
        "parametrizations.weight.0._u",
        "parametrizations.weight.0._v",
    }
    for _ in range(20):
        m(torch.randn(2, 5))
    assert_close(torch.linalg.matrix_norm(m.weight.detach(), 2), torch.tensor(1.0))
    u = m.parametrizations.weight[0]._u.clone()
    m.eval()
    for _ in range(3):
        m(torch.randn(2, 5))
    assert_close(m.parametrizations.weight[0]._u, u, rtol=0, atol=0)
    assert_close(m.weight, m.weight)
    P.remove_parametrizations(m, "weight")
    check_plain(m)
    assert m.weight.requires_grad


def test_spectral_norm_iterates_at_every_read_in_training(P, N):
    m = nn.Linear(6, 6)
    # With singular values so close to each other, power iteration does not converge in a few steps.
    m.weight.data = torch.diag(torch.linspace(1, 0.95, 6))
    m = N.spectral_norm(m)
    u = m.parametrizations.weight[0]._u
    seen = []
    for _ in range(3):
        _ = m.weight
        seen.append(u.clone())
    assert m.parametrizations.weight[0]._u is u
    assert not torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2])


def test_spectral_norm_state_loads(P, N):
    a, b = N.spectral_norm(nn.Linear(4, 4)).eval(), N.spectral_norm(nn.Linear(4, 4)).eval()
    b.load_state_dict(a.state_dict())
    x = torch.randn(2, 4)
    assert_close(a(x), b(x))


def test_spectral_norm_of_other_layers(P, N):
    m = N.spectral_norm(nn.ConvTranspose2d(2, 3, 2))
    assert m.parametrizations.weight[0]._u.shape == (3,)
    assert m(torch.randn(1, 2, 4, 4)).shape == (1, 3, 5, 5)
    with pytest.raises(ValueError):
        N.spectral_norm(nn.Linear(2, 2), name="foo")


@pytest.mark.parametrize("requires_grad", [True, False])
def test_spectral_norm_gradcheck(P, N, requires_grad):
    m = N.spectral_norm(nn.Linear(3, 3).double())
    m.parametrizations.weight.original.requires_grad_(requires_grad)
    m(torch.randn(2, 3).double())
    m.eval()
    x = torch.randn(2, 3, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(m, (x,))


@pytest.mark.parametrize("shape", [(4, 4), (6, 3), (3, 6)])
@pytest.mark.parametrize("map_name", ["matrix_exp", "cayley", "householder"])
@pytest.mark.parametrize("trivialization", [True, False])
def test_orthogonal(P, N, shape, map_name, trivialization):
    m = nn.Linear(*shape)
    N.orthogonal(m, "weight", map_name, use_trivialization=trivialization)
    q = m.weight if shape[0] <= shape[1] else m.weight.mT
    assert_close(q.mT @ q, torch.eye(min(shape)), atol=1e-5, rtol=0)
    m(torch.randn(2, shape[0])).sum().backward()
    assert torch.isfinite(m.parametrizations.weight.original.grad).all()
    del q
    if trivialization or map_name == "householder":
        new = nn.init.orthogonal_(torch.empty(m.out_features, m.in_features))
        m.weight = new
        assert_close(m.weight.detach(), new, atol=1e-5, rtol=0)


def test_orthogonal_errors(P, N):
    m = nn.Linear(3, 3)
    for name, kwargs in [("foo", {}), ("bias", {}), ("weight", {"orthogonal_map": "foo"})]:
        with pytest.raises(ValueError):
            N.orthogonal(m, name, **kwargs)
    check_plain(m)


@pytest.mark.parametrize("dim", [0, 1, None])
def test_weight_norm(P, N, dim):
    m = nn.Linear(3, 4)
    value = m.weight.detach().clone()
    N.weight_norm(m, dim=dim)
    assert_close(m.weight.detach(), value)
    g, v = m.parametrizations.weight.original0, m.parametrizations.weight.original1
    with torch.no_grad():
        g.mul_(2)
        v.mul_(5)
    assert_close(m.weight.detach(), 2 * value)
    m(torch.randn(2, 3)).sum().backward()
    assert g.grad is not None and v.grad is not None
    P.remove_parametrizations(m, "weight")
    check_plain(m)
    assert_close(m.weight.detach(), 2 * value)


def test_weight_norm_deepcopy_and_old_checkpoints(P, N):
    m = N.weight_norm(nn.Linear(3, 4))
    twin = copy.deepcopy(m)
    assert_close(twin.weight, m.weight)
    old = {"bias": m.bias.detach(), "weight_g": torch.ones(4, 1), "weight_v": torch.randn(4, 3)}
    m.load_state_dict(old)
    assert_close(m.weight.detach(), nn.functional.normalize(old["weight_v"], dim=1))


def test_weight_norm_needs_the_tensor(P, N):
    with pytest.raises(ValueError, match="foo"):
        N.weight_norm(nn.Linear(3, 4), "foo")


# ------------------------------------------------------------------ ---------- tensor subclasses


def test_a_tensor_subclass(P):
    class Shifted(nn.Module):
        def forward(self, x):
            return x + 1

        def right_inverse(self, y):
            return y - 1

    m = nn.Module()
    m.p = nn.Parameter(TwoTensor(torch.randn(3), torch.randn(3)))
    p, before = m.p, m.p.detach().clone()
    P.register_parametrization(m, "p", Shifted())
    assert isinstance(m.p, TwoTensor) and m.parametrizations.p.original is p
    assert_close(m.p.a.detach(), before.a)
    assert_close(m.parametrizations.p.original.b.detach(), before.b - 1)
    P.remove_parametrizations(m, "p")
    assert m.p is p and isinstance(m.p, nn.Parameter)
    assert_close(m.p.a.detach(), before.a)
    assert_close(m.p.b.detach(), before.b)


def test_a_subclass_that_wraps_the_value_of_a_plain_parameter(P):
    class Wrapped(nn.Module):
        def forward(self, a, b):
            return TwoTensor(a, b)

        def right_inverse(self, two):
            return two.a, two.b

    m = nn.Module()
    m.p = nn.Parameter(TwoTensor(torch.ones(3), torch.zeros(3)))
    P.register_parametrization(m, "p", Wrapped(), unsafe=True)
    assert isinstance(m.p, TwoTensor)
    assert set(m.state_dict()) == {"parametrizations.p.original0", "parametrizations.p.original1"}


# ------------------------------------------------------- the examples of torch's own documentation


class DocSymmetric(nn.Module):
    def forward(self, X):
        return X.triu() + X.triu(1).T

    def right_inverse(self, A):
        return A.triu()


class DocRankOne(nn.Module):
    def forward(self, x, y):
        return x.unsqueeze(-1) @ y.unsqueeze(-2)

    def right_inverse(self, Z):
        U, S, Vh = torch.linalg.svd(Z, full_matrices=False)
        s0_sqrt = S[0].sqrt().unsqueeze(-1)
        return U[..., :, 0] * s0_sqrt, Vh[..., 0, :] * s0_sqrt


def test_the_symmetric_example_of_the_documentation(P):
    m = nn.Linear(5, 5)
    P.register_parametrization(m, "weight", DocSymmetric())
    assert torch.equal(m.weight, m.weight.T)
    A = torch.rand(5, 5)
    A = A + A.T
    m.weight = A
    assert torch.equal(m.weight, A)


def test_the_rank_one_example_of_the_documentation(P):
    linear = nn.Linear(4, 4)
    P.register_parametrization(linear, "weight", DocRankOne())
    assert torch.linalg.matrix_rank(linear.weight).item() == 1
    assert set(linear.parametrizations.weight._parameters) == {"original0", "original1"}
    linear.weight = torch.outer(torch.ones(4), torch.arange(4.0))
    assert_close(linear.weight.detach(), torch.outer(torch.ones(4), torch.arange(4.0)))


def test_the_nested_reading_of_the_documentation(P):
    """One parametrization on top of another: skew first, then the exponential map."""

    class Exponential(nn.Module):
        def forward(self, X):
            return torch.linalg.matrix_exp(X)

    layer = nn.Linear(3, 3)
    P.register_parametrization(layer, "weight", Skew())
    P.register_parametrization(layer, "weight", Exponential())
    X = layer.weight
    assert_close(X.T @ X, torch.eye(3))
    assert [type(p) for p in layer.parametrizations.weight] == [Skew, Exponential]


# -------------------------------------------------------------------------------- names of the API


def test_the_api_has_the_names_of_torch():
    for name in torch_parametrize.__all__:
        assert hasattr(our_parametrize, name) and name in our_parametrize.__all__


class AsksAutograd(nn.Module):
    def forward(self, x):
        leaf = x.detach().clone().requires_grad_()
        return x + 0 * torch.autograd.grad(leaf.square().sum(), leaf)[0]


def test_a_forward_that_asks_autograd(P):
    m = nn.Linear(3, 3)
    P.register_parametrization(m, "weight", AsksAutograd())
    assert m.weight.shape == (3, 3)
