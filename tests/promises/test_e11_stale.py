"""A value is never reused after something it depends on has changed (E11).

The reference is always a fresh evaluation of the parametrizations on their originals.
"""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize as torchs
from torch.testing import assert_close

import constrained.parametrize as ours
from constrained import constrain, rebase, release
from tests.promises.counting import (
    Anchored,
    Foreign,
    Outer,
    Positive,
    Sphere,
    Symmetric,
    layer,
    original,
    reset,
)


def check(m, name="weight"):
    """A read, with and without gradients, gives what an evaluation gives now."""
    fresh = m.parametrizations[name]()
    for _ in range(2):
        with torch.no_grad():
            assert_close(getattr(m, name), fresh.detach(), rtol=0, atol=0)
        value = getattr(m, name)
        assert_close(value, fresh, rtol=0, atol=0)
        assert value.requires_grad is fresh.requires_grad
    if fresh.requires_grad:
        originals = [p for p in m.parametrizations[name].parameters() if p.requires_grad]
        direction = torch.randn_like(fresh)
        expected = torch.autograd.grad(fresh, originals, direction)
        found = torch.autograd.grad(getattr(m, name), originals, direction)
        assert_close(found, expected)


def read_before(m, how):
    if how == "train":
        return m.weight
    if how == "no_grad":
        with torch.no_grad():
            return m.weight
    if how == "inference":
        with torch.inference_mode():
            return m.weight
    m(ones(m)).sum().backward()
    return None


READS = pytest.mark.parametrize("how", ["train", "no_grad", "inference", "backward"])
SIZES = pytest.mark.parametrize("n", [3, 64])


def ones(m):
    return torch.ones(1, m.in_features, dtype=m.bias.dtype)


def step(m):
    m.zero_grad()
    m(ones(m)).pow(2).sum().backward()
    torch.optim.SGD(m.parameters(), lr=0.1).step()


def fused(m):
    m.zero_grad()
    m(ones(m)).pow(2).sum().backward()
    torch.optim.Adam(m.parameters(), fused=True).step()


def foreach(m):
    m.zero_grad()
    m(ones(m)).pow(2).sum().backward()
    torch.optim.Adam(m.parameters(), foreach=True).step()


def assign(m):
    m.weight = torch.full_like(m.weight, 0.7)


def load(m):
    m.load_state_dict({k: v + 0.1 for k, v in m.state_dict().items()})


def load_assign(m):
    m.load_state_dict({k: v + 0.1 for k, v in m.state_dict().items()}, assign=True)


def double(m):
    m.double()


def bfloat16(m):
    m.bfloat16()


def to_and_back(m):
    m.double().float()


def in_place(m):
    with torch.no_grad():
        original(m).mul_(1.5)


def in_place_inference(m):
    with torch.inference_mode():
        original(m).mul_(1.5)


def data_in_place(m):
    original(m).data.mul_(1.5)


def data_replaced(m):
    original(m).data = original(m).data * 1.5


def data_replaced_twice(m):
    original(m).data = original(m).data * 1.5
    original(m).data = original(m).data * 1.5


def detached_in_place(m):
    original(m).detach().mul_(1.5)


def by_numpy(m):
    array = original(m).detach().numpy()
    array *= 1.5


def set_(m):
    with torch.no_grad():
        original(m).set_(original(m) * 1.5)


def new_parameter(m):
    m.parametrizations.weight.original = nn.Parameter(original(m).detach() * 1.5)


def new_parameter_same_memory(m):
    m.parametrizations.weight.original = nn.Parameter(original(m).detach())
    original(m).data.mul_(1.5)


def swapped(m):
    # Any other reference, also one from a stored graph, would prevent that.
    m.parametrizations.weight.forget()
    torch.utils.swap_tensors(original(m), nn.Parameter(original(m).detach() * 1.5))


def argument(m):
    m.parametrizations.weight[0].scale = 3.0


def frozen(m):
    original(m).requires_grad_(False)


def frozen_and_back(m):
    original(m).requires_grad_(False)
    _ = m.weight
    original(m).requires_grad_(True)


def flag(m):
    m.eval()


def vector(m):
    nn.utils.vector_to_parameters(
        nn.utils.parameters_to_vector(m.parameters()).detach() * 1.5, m.parameters()
    )


def initialized(m):
    nn.init.uniform_(original(m))


def second(m):
    ours.register_parametrization(m, "weight", Positive())


def removed_and_again(m):
    ours.remove_parametrizations(m, "weight")
    ours.register_parametrization(m, "weight", Positive(scale=2.0))


def replaced_constraint(m):
    m.parametrizations.weight[0] = Positive(scale=5.0)


def rebased(m):
    rebase(m)


CHANGES = [
    step,
    fused,
    foreach,
    assign,
    load,
    load_assign,
    double,
    bfloat16,
    to_and_back,
    in_place,
    in_place_inference,
    data_in_place,
    data_replaced,
    data_replaced_twice,
    detached_in_place,
    by_numpy,
    set_,
    new_parameter,
    new_parameter_same_memory,
    swapped,
    argument,
    frozen,
    frozen_and_back,
    flag,
    vector,
    initialized,
    second,
    removed_and_again,
    replaced_constraint,
    rebased,
]


@SIZES
@READS
@pytest.mark.parametrize("change", CHANGES)
def test_e11_never_stale(change, how, n):
    m = layer(Positive(), n)
    kept = read_before(m, how)
    if change is swapped:
        # torch swaps no tensor that a graph refers to
        kept = None
    before = None if kept is None else kept.clone()
    change(m)
    check(m)
    with torch.no_grad():
        assert kept is None or torch.equal(kept, before)
    step(m)
    if m.weight.requires_grad:
        check(m)


@pytest.mark.parametrize("change", CHANGES)
def test_e11_never_stale_inside_cached(change):
    m = layer(Positive())
    with ours.cached():
        read_before(m, "backward")
        change(m)
        check(m)


@pytest.mark.parametrize(
    "change",
    [
        step,
        load,
        load_assign,
        double,
        in_place,
        data_in_place,
        data_replaced,
        new_parameter,
        frozen,
        flag,
        second,
    ],
)
@READS
def test_e11_never_stale_inside_cached_for_foreign_modules(change, how):
    m = layer(Foreign())
    with ours.cached():
        read_before(m, how)
        change(m)
        check(m)
        assert m.weight is m.weight


@pytest.mark.torch_today
@pytest.mark.parametrize("change", [in_place, load, data_replaced])
def test_e11_in_torch_today(change):
    m = nn.Linear(3, 3)
    torchs.register_parametrization(m, "weight", Foreign())
    with torchs.cached():
        _ = m.weight
        change(m)
        with pytest.raises(AssertionError):
            check(m)


@pytest.mark.torch_today
def test_e11_no_grad_first_in_torch_today():
    m = nn.Linear(3, 3)
    torchs.register_parametrization(m, "weight", Foreign())
    with torchs.cached():
        with torch.no_grad():
            _ = m.weight
        assert not m.weight.requires_grad


# -------------------------------------------------------------------------- originals and buffers


@pytest.mark.parametrize("which", [0, 1])
def test_e11_each_of_several_originals(which):
    m = layer(Outer())
    for write in (torch.Tensor.mul_, lambda t, f: t.data.mul_(f)):
        _ = m.weight
        with torch.no_grad():
            write(getattr(m.parametrizations.weight, f"original{which}"), 1.5)
        check(m)


def test_e11_buffers_of_a_constraint_and_frozen_originals():
    m = layer(Anchored())
    constraint = m.parametrizations.weight[0]
    with torch.no_grad():
        m.parametrizations.weight.original0.fill_(0.5)
    check(m)
    constraint.gain.mul_(2)
    check(m)
    constraint.gain.data.mul_(2)
    check(m)
    constraint.gain = torch.tensor(7.0)
    check(m)
    constraint.register_buffer("gain", torch.tensor(9.0))
    check(m)
    constraint._buffers["gain"] = torch.tensor(11.0)
    check(m)
    m.parametrizations.weight.original1.mul_(2)
    check(m)


def test_e11_buffers_that_are_parametrized():
    m = nn.BatchNorm1d(3)
    constrain(m, "running_var", Positive())
    for _ in range(2):
        check(m, "running_var")
        original(m, "running_var").add_(0.5)
    check(m, "running_var")


def test_e11_only_one_of_the_originals_needs_a_gradient():
    m = layer(Outer())
    lists = m.parametrizations.weight
    lists.original0.requires_grad_(False)
    check(m)
    _ = m.weight
    lists.original0.requires_grad_(True)
    lists.original1.requires_grad_(False)
    check(m)
    lists.original1.requires_grad_(True)
    check(m)
    m.weight.sum().backward()
    assert lists.original0.grad is not None and lists.original1.grad is not None


# -------------------------------------------------------------------------- steps written by hand


@SIZES
def test_e11_sgd_written_by_hand(n):
    m, twin = layer(Sphere(), n), layer(Sphere(), n)
    twin.load_state_dict(m.state_dict())
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    x = torch.randn(4, n)
    for _ in range(5):
        for model in (m, twin):
            model.zero_grad()
            model(x).pow(2).mean().backward()
        for p in m.parameters():
            p.data -= 0.1 * p.grad
        optimizer.step()
        assert_close(m.weight, twin.weight)


@SIZES
@pytest.mark.parametrize("frozen", [True, False])
def test_e11_a_target_network(n, frozen):
    """Soft updates write through ``.data``; the target is in no backward pass."""
    online, target = layer(Positive(), n), layer(Positive(), n)
    target.requires_grad_(not frozen)
    for _ in range(4):
        with torch.no_grad():
            target(torch.ones(1, n))
        target(torch.ones(1, n))
        for p, q in zip(target.parameters(), online.parameters(), strict=True):
            p.data.copy_(0.5 * p.data + 0.5 * q.data)
        expected = target.parametrizations.weight()
        assert_close(target.weight, expected, rtol=0, atol=0)
        with torch.no_grad():
            assert_close(target.weight, expected.detach(), rtol=0, atol=0)


def test_e11_weight_clipping_after_a_look_at_the_weight():
    m = layer()
    for _ in range(3):
        step(m)
        m.weight.norm().item()
        for p in m.parameters():
            p.data.clamp_(-0.01, 0.01)
        check(m)


def test_e11_gradcheck_moves_the_parameters_behind_autograd():
    m = layer(Positive()).double()
    x = torch.randn(2, 3, dtype=torch.double)
    assert torch.autograd.gradcheck(lambda *_: m(x), tuple(m.parameters()))
    assert torch.autograd.gradgradcheck(lambda *_: m(x), tuple(m.parameters()))


def test_e11_weights_swapped_for_averages_and_back():
    m = layer()
    average = {k: v.clone() * 0.5 for k, v in m.state_dict().items()}
    value = m.weight.detach().clone()
    backup = [p.data for p in m.parameters()]
    for p, k in zip(m.parameters(), ["parametrizations.weight.original", "bias"], strict=True):
        p.data = average[k]
    check(m)
    for p, data in zip(m.parameters(), backup, strict=True):
        p.data = data
    check(m)
    assert_close(m.weight.detach(), value)


def test_e11_one_entry_of_a_small_tensor():
    m = layer()
    for i in range(9):
        _ = m.weight
        original(m).data.view(-1)[i] += 1
        check(m)


def test_e11_a_row_of_a_large_tensor():
    """Every write that autograd can see is noticed, however few entries it changes."""
    m = layer(n=64)
    for i in range(0, 64, 7):
        _ = m.weight
        with torch.no_grad():
            original(m)[i, i] += 1
        check(m)


# -------------------------------------------------- modes: gradients, inference, training, autocast


@pytest.mark.parametrize("first", ["no_grad", "inference"])
def test_e11_a_first_read_without_gradients_spoils_no_training(first):
    m = layer(Sphere())
    for _ in range(3):
        read_before(m, first)
        m.zero_grad()
        m(torch.ones(1, 3)).pow(2).sum().backward()
        assert original(m).grad is not None
        torch.optim.SGD(m.parameters(), lr=0.1).step()
        read_before(m, first)
        check(m)


def test_e11_inside_inference_mode_and_out_again():
    m = layer(Sphere())
    with torch.inference_mode():
        a = m.weight
        assert a.is_inference() and m.weight is a
        with torch.inference_mode(False):
            assert not m.weight.is_inference() and m.weight.requires_grad
            m.weight.sum().backward()
    b = m.weight
    assert not b.is_inference()
    b.sum().backward()
    with torch.no_grad():
        (m.weight * torch.ones(3, requires_grad=True)).sum()
    x = torch.ones(3, requires_grad=True)
    (m.weight.detach() @ x).sum().backward()


def test_e11_set_grad_enabled_inside_a_step():
    m = layer(Sphere())
    with torch.set_grad_enabled(False):
        low = m.weight
        with torch.enable_grad():
            assert m.weight.requires_grad
        assert not m.weight.requires_grad and not low.requires_grad


class TrainingShift(Positive):
    """A constraint whose value depends on the training flag."""

    def forward(self, x):
        return super().forward(x) + (1.0 if self.training else 2.0)

    def right_inverse(self, value):
        return super().right_inverse(value - (1.0 if self.training else 2.0))

    def project(self, value):
        return value.abs() + 3


def test_e11_training_flag():
    m = layer(TrainingShift())
    trained = m.weight.detach().clone()
    m.eval()
    assert_close(m.weight.detach(), trained + 1)
    m.train()
    assert_close(m.weight.detach(), trained)
    m.parametrizations.eval()
    assert_close(m.weight.detach(), trained + 1)
    m.train()
    m.parametrizations.weight[0].eval()
    assert_close(m.weight.detach(), trained + 1)


def test_e11_autocast_on_and_off_between_reads():
    m = layer(Sphere())
    expected = m.weight.detach().clone()
    x = torch.ones(2, 3)
    for _ in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert m.weight.dtype is torch.float32
            assert_close(m.weight.detach(), expected)
            assert m(x).dtype is torch.bfloat16
        assert m.weight.dtype is torch.float32
        assert m(x).dtype is torch.float32
        m(x).sum().backward()
    with torch.no_grad():
        original(m).add_(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _ = m.weight
        m(x).sum().backward()
    check(m)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_e11_autocast_and_foreign_modules_inside_cached(dtype):
    m = layer(Foreign())
    with ours.cached():
        with torch.autocast("cpu", dtype=dtype):
            assert m.weight.dtype is dtype and m.weight is m.weight
        assert m.weight.dtype is torch.float32
        with torch.autocast("cpu", dtype=dtype):
            assert m.weight.dtype is dtype
            with torch.autocast("cpu", enabled=False):
                assert m.weight.dtype is torch.float32


@pytest.mark.torch_today
def test_e11_autocast_in_torch_today():
    m = nn.Linear(3, 3)
    torchs.register_parametrization(m, "weight", Foreign(), unsafe=True)
    with torchs.cached():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            _ = m.weight
        assert m.weight.dtype is torch.bfloat16


def test_e11_a_changed_argument():
    m = layer(Sphere(radius=1.0))
    _ = m.weight
    m.parametrizations.weight[0].radius = 2.0
    assert_close(m.weight.norm(dim=1).detach(), torch.full((3,), 2.0))
    m.parametrizations.weight[0].radius = 2.0
    check(m)


def test_e11_a_changed_argument_of_one_of_two_in_a_chain():
    m = layer(Sphere())
    ours.register_parametrization(m, "weight", Positive(2.0))
    for index, name in [(0, "radius"), (1, "scale")]:
        _ = m.weight
        setattr(m.parametrizations.weight[index], name, 5.0)
        check(m)


def test_e11_an_argument_that_is_a_tensor():
    class Shifted(Symmetric):
        def __init__(self, shift):
            super().__init__()
            self.shift = shift

        def forward(self, x):
            return super().forward(x) + self.shift

        def right_inverse(self, value):
            return super().right_inverse(value - self.shift)

    m = layer(Shifted(torch.zeros(3, 3)))
    _ = m.weight
    m.parametrizations.weight[0].shift.add_(1)
    check(m)


# ------------------------------------------------------------------------ nested, shared, replaced


def test_e11_nested_parametrizations_inside_cached():
    m = layer(Sphere())
    ours.register_parametrization(m.parametrizations.weight, "original", Sphere())
    inner = m.parametrizations.weight.parametrizations.original.original
    with ours.cached():
        for change in (
            lambda: inner.add_(2),
            lambda: inner.data.add_(inner.sin()),
            lambda: setattr(m.parametrizations.weight.parametrizations.original[0], "radius", 3.0),
        ):
            _ = m.weight
            with torch.no_grad():
                change()
            fresh = nn.functional.normalize(
                m.parametrizations.weight.parametrizations.original(), dim=1
            )
            assert_close(m.weight, fresh)
    ours.remove_parametrizations(m.parametrizations.weight, "original")
    check(m)


def test_e11_one_original_in_two_modules():
    a, b = layer(Positive()), layer(Sphere())
    b.parametrizations.weight.original = original(a)
    for _ in range(2):
        check(a)
        check(b)
        step(a)
    check(a)
    check(b)


def test_e11_a_constraint_that_two_modules_share():
    constraint = Sphere()
    a, b = layer(constraint), layer(constraint)
    check(a), check(b)
    constraint.radius = 3.0
    check(a), check(b)


def test_e11_a_deepcopy_starts_with_nothing():
    m = layer()
    _ = m.weight
    twin = copy.deepcopy(m)
    with torch.no_grad():
        original(twin).zero_()
    check(twin)
    check(m)
    assert not torch.equal(twin.weight, m.weight)


def test_e11_released_tensors_are_plain():
    m = layer()
    value = m.weight
    release(m, "weight")
    assert m.weight.is_leaf
    with torch.no_grad():
        m.weight.zero_()
    assert torch.count_nonzero(value) == 9


# --------------------------------------------------------------------- in-place writes to the value

WRITES = {
    "mul_": lambda m: m.weight.mul_(2),
    "init": lambda m: nn.init.zeros_(m.weight),
    "copy_": lambda m: m.weight.copy_(torch.ones(3, 3)),
    "item": lambda m: m.weight.__setitem__((0, 0), 7.0),
    "row of a view": lambda m: m.weight[0].zero_(),
    "data": lambda m: m.weight.data.normal_(),
    "detached": lambda m: m.weight.detach().normal_(),
    "numpy": lambda m: m.weight.detach().numpy().__setitem__((0, 0), 7.0),
}


BEHIND_AUTOGRAD = ("data", "detached", "numpy")
WRITTEN = [(write, mode) for write in WRITES for mode in ("no_grad", "inference_mode")]
WRITTEN += [(write, "enable_grad") for write in BEHIND_AUTOGRAD]


@pytest.mark.parametrize(("write", "mode"), WRITTEN)
@pytest.mark.parametrize("read_first", [True, False])
def test_e11_a_write_into_a_read_value_raises_at_the_next_read(write, mode, read_first):
    m = layer()
    state = copy.deepcopy(m.state_dict())
    if read_first:
        _ = m.weight
    with getattr(torch, mode)():
        with pytest.raises(RuntimeError, match="written in place") as caught:
            WRITES[write](m)
            _ = m.weight
        assert "module.weight = new_value" in str(caught.value) and "Positive" in str(caught.value)
        _ = m.weight
    for key, tensor in state.items():
        if key != "bias":
            assert torch.equal(m.state_dict()[key], tensor)
    check(m)
    step(m)
    check(m)


def test_e11_a_write_is_not_carried_into_another_mode():
    m = layer()
    with torch.no_grad():
        m.weight.mul_(2)
    with pytest.raises(RuntimeError, match="written in place"):
        m(torch.ones(1, 3))
    check(m)


def test_e11_a_write_followed_by_a_step_is_not_forgotten():
    m = layer()
    with torch.no_grad():
        m.weight.mul_(2)
        original(m).add_(1)
    with pytest.raises(RuntimeError, match="written in place"):
        _ = m.weight
    check(m)


def test_e11_a_write_that_autograd_records_has_the_right_gradient():
    m = layer(Sphere())
    w = m.weight
    w.mul_(2)
    w.sin().sum().backward()
    expected = torch.autograd.grad((2 * m.parametrizations.weight()).sin().sum(), original(m))
    assert_close(original(m).grad, expected[0])
    with pytest.raises(RuntimeError, match="written in place"):
        _ = m.weight
    check(m)


SPOILS = {
    "detach_": lambda m: m.weight.detach_(),
    "data": lambda m: setattr(m.weight, "data", torch.zeros(3, 3)),
    "requires_grad_": lambda m: m.weight.detach().requires_grad_(),
    "unsqueeze_": lambda m: m.weight.unsqueeze_(0),
    "t_": lambda m: m.weight.t_(),
    "resize_": lambda m: m.weight.detach().resize_(2, 2),
}


@pytest.mark.parametrize("spoil", SPOILS)
@pytest.mark.parametrize("mode", ["enable_grad", "no_grad", "inference_mode"])
def test_e11_a_value_cannot_be_spoilt_for_its_next_reader(spoil, mode):
    m = layer()
    with getattr(torch, mode)():
        try:
            SPOILS[spoil](m)
            _ = m.weight
        except RuntimeError as error:
            assert "written in place" in str(error) or spoil == "resize_"
    check(m)
    step(m)
    check(m)


@pytest.mark.parametrize("frozen", [True, False])
def test_e11_a_value_made_to_require_a_gradient_stays_so_for_its_reader_only(frozen):
    m = layer()
    m.requires_grad_(not frozen)
    with torch.set_grad_enabled(frozen):
        w = m.weight.requires_grad_()
        assert w.requires_grad
        try:
            assert not m.weight.requires_grad
        except RuntimeError as error:
            assert "written in place" in str(error)
    m.requires_grad_(True)
    check(m)


def test_e11_writes_where_the_value_is_the_original():
    """If a constraint returns its argument, a write into the value is one into the original."""

    class Free(Symmetric):
        def forward(self, x):
            self._tick()
            return x

        def right_inverse(self, value):
            return value.clone()

        def violation(self, value):
            return torch.zeros(value.shape[:-2])

    m = layer(Free())
    reset(m)
    with torch.no_grad():
        m.weight.fill_(3.0)
    check(m)
    for _ in range(3):
        step(m)
        check(m)
