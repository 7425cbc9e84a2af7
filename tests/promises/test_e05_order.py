"""E05: parameters keep their order, which an optimizer's saved state refers to."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize as torchs
from torch.testing import assert_close

import constrained.parametrize as ours
from constrained import constrain
from tests.promises.copies import pickled
from tests.promises.counting import (
    Sphere,
)
from tests.promises.foreign import Scaled, Split, ids, squashed

torch_today = pytest.mark.torch_today


def lstm():
    return nn.LSTM(3, 3, 2)


def model_of_models():
    return nn.Sequential(nn.Linear(3, 3), nn.LSTM(3, 3), nn.Sequential(nn.Linear(3, 3)))


class Mixed(nn.Module):
    """Own parameters, children before and between them, a shared one, a None."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.rand(3, 3) / 2)
        self.child = nn.Linear(3, 3)
        self.b = nn.Parameter(torch.rand(3, 3) / 2)
        self.register_parameter("none", None)
        self.shared = self.child.weight
        self.attention = nn.MultiheadAttention(4, 2, bias=False)
        self.c = nn.Parameter(torch.rand(3) / 2)


ORDERS = [
    (lambda: nn.Linear(3, 3), ["weight"]),
    (lambda: nn.Linear(3, 3), ["bias"]),
    (lambda: nn.Linear(3, 3), ["weight", "bias"]),
    (lambda: nn.Linear(3, 3), ["bias", "weight"]),
    (lambda: nn.Linear(3, 3, bias=False), ["weight"]),
    (lstm, ["weight_hh_l0"]),
    (lstm, ["bias_ih_l1", "weight_ih_l0", "weight_hh_l1"]),
    (lambda: nn.MultiheadAttention(4, 2), ["in_proj_weight", "out_proj.weight"]),
    (lambda: nn.MultiheadAttention(4, 2, bias=False), ["in_proj_weight"]),
    (lambda: nn.MultiheadAttention(4, 2), ["in_proj_bias", "in_proj_weight"]),
    (model_of_models, ["1.weight_hh_l0"]),
    (model_of_models, ["0.weight", "1.bias_hh_l0", "2.0.weight", "2.0.bias"]),
    (Mixed, ["a"]),
    (Mixed, ["b"]),
    (Mixed, ["c", "a", "b"]),
    (Mixed, ["child.weight", "b"]),
    (Mixed, ["attention.in_proj_weight", "a"]),
]


@pytest.mark.parametrize(("make", "names"), ORDERS)
def test_e05_the_order_of_parameters_is_kept(make, names):
    m = make()
    before, named = ids(m), [n for n, _ in m.named_parameters()]
    for name in names:
        ours.register_parametrization(m, name, nn.Tanh())
        assert ids(m) == before
    outer = nn.Sequential(nn.Linear(2, 2), m, nn.Linear(2, 2))
    assert ids(outer)[2:-2] == before
    assert [n for n, _ in pickled(m).named_parameters()] == [n for n, _ in m.named_parameters()]
    state = list(m.state_dict())
    assert len(state) == len(set(state))
    for name in names:
        ours.remove_parametrizations(m, name, leave_parametrized=False)
        assert ids(m) == before
    assert [n for n, _ in m.named_parameters()] == named


@torch_today
@pytest.mark.parametrize(("make", "names"), [ORDERS[0], ORDERS[5]])
def test_e05_in_torch_today(make, names):
    m = make()
    before = ids(m)
    torchs.register_parametrization(m, names[0], nn.Tanh())
    assert ids(m) != before
    torchs.remove_parametrizations(m, names[0], leave_parametrized=False)
    assert ids(m) != before


def test_e05_several_originals_stand_where_their_tensor_stood():
    m = nn.Linear(3, 3)
    ours.register_parametrization(m, "weight", Split())
    names = [n for n, _ in m.named_parameters()]
    assert names == [
        "parametrizations.weight.original0",
        "parametrizations.weight.original1",
        "bias",
    ]
    ours.remove_parametrizations(m, "weight")
    assert [n for n, _ in m.named_parameters()] == ["weight", "bias"]


def test_e05_buffers_keep_their_order():
    m = nn.BatchNorm1d(3)
    before = [id(b) for b in m.buffers()]
    ours.register_parametrization(m, "running_mean", Scaled())
    ours.remove_parametrizations(m, "running_mean", leave_parametrized=False)
    assert [id(b) for b in m.buffers()] == before
    assert list(m.state_dict()) == list(nn.BatchNorm1d(3).state_dict())


def test_e05_a_parameter_added_later_comes_last():
    m = squashed()
    m.gain = nn.Parameter(torch.ones(()))
    names = ["parametrizations.weight.original", "bias", "gain"]
    assert [n for n, _ in m.named_parameters()] == names
    ours.remove_parametrizations(m, "weight")
    assert [n for n, _ in m.named_parameters()] == ["weight", "bias", "gain"]


def check_optimizer_state(P, make, name):
    """Adam's moments, saved from a plain model, go to the right parameters of another."""
    plain, constrained = make(), make()
    owner, _, tensor = name.rpartition(".")
    P.register_parametrization(constrained.get_submodule(owner), tensor, nn.Tanh())
    for p in plain.parameters():
        p.grad = torch.full_like(p, p.numel())
    first = torch.optim.Adam(plain.parameters())
    first.step()
    second = torch.optim.Adam(constrained.parameters())
    second.load_state_dict(first.state_dict())
    for p, q in zip(plain.parameters(), constrained.parameters(), strict=True):
        assert second.state[q]["exp_avg"].shape == q.shape == p.shape
        assert torch.equal(second.state[q]["exp_avg"], first.state[p]["exp_avg"])
        q.grad = torch.ones_like(q)
    second.step()


OPTIMIZERS = [
    (lambda: nn.Linear(3, 3), "weight"),
    (lstm, "weight_hh_l0"),
    (model_of_models, "1.weight_hh_l0"),
]


@pytest.mark.parametrize(("make", "name"), OPTIMIZERS)
def test_e05_optimizer_states_load(make, name):
    check_optimizer_state(ours, make, name)


@torch_today
@pytest.mark.parametrize(("make", "name"), OPTIMIZERS)
def test_e05_optimizer_states_in_torch_today(make, name):
    with pytest.raises((AssertionError, RuntimeError)):
        check_optimizer_state(torchs, make, name)


def test_e05_adam_goes_on_in_a_fresh_model():
    def start():
        torch.manual_seed(3)
        m = constrain(nn.Sequential(lstm()), "0.weight_hh_l*", Sphere())
        return m, torch.optim.Adam(m.parameters(), lr=0.05)

    def step(m, optimizer):
        optimizer.zero_grad()
        m(torch.ones(4, 3))[0].pow(2).sum().backward()
        optimizer.step()

    a, optimizer_a = start()
    for _ in range(3):
        step(a, optimizer_a)
    b, optimizer_b = start()
    b.load_state_dict(copy.deepcopy(a.state_dict()))
    optimizer_b.load_state_dict(copy.deepcopy(optimizer_a.state_dict()))
    for _ in range(3):
        step(a, optimizer_a)
        step(b, optimizer_b)
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert_close(p, q)


def test_e05_random_models():
    """Parameters stay in order in random trees of modules, with random names."""
    generator = torch.Generator().manual_seed(0)

    def pick(n):
        return int(torch.randint(n, (), generator=generator))

    def tree(depth):
        m = nn.Module()
        for i in range(1 + pick(4)):
            if pick(2) and depth:
                m.add_module(f"m{i}", tree(depth - 1))
            else:
                m.register_parameter(f"p{i}", nn.Parameter(torch.rand(2)))
        return m

    for _ in range(60):
        m = tree(3)
        names, before = [n for n, _ in m.named_parameters()], ids(m)
        chosen = [n for n in names if pick(2)]
        chosen = [chosen[i] for i in torch.randperm(len(chosen), generator=generator)]
        for name in chosen:
            ours.register_parametrization(m, name, nn.Tanh())
            assert ids(m) == before
        for name in reversed(chosen):
            ours.remove_parametrizations(m, name, leave_parametrized=False)
            assert ids(m) == before
        assert [n for n, _ in m.named_parameters()] == names
