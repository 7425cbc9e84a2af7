"""E16: writes into a parametrized tensor take effect on its value, or raise with the cure."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize as torchs
from torch.testing import assert_close

import constrained
import constrained.parametrize as ours
from constrained import constrain, writable
from tests.promises.counting import Foreign, Positive, Sphere, layer, original
from tests.promises.foreign import Squash, squashed

torch_today = pytest.mark.torch_today


class OneWay(nn.Module):
    """A foreign parametrization without a right inverse."""

    def forward(self, x):
        return x.tanh()


def is_on_sphere(w):
    return torch.allclose(w.detach().norm(dim=-1), torch.ones(w.shape[:-1]), atol=1e-5)


# ----------------------------------------------------------------------------- initialisation

MODULES = {
    "Linear": (lambda: nn.Linear(4, 4), "weight"),
    "Conv": (lambda: nn.Conv2d(2, 3, 3), "weight"),
    "Embedding": (lambda: nn.Embedding(5, 3), "weight"),
    "Bilinear": (lambda: nn.Bilinear(2, 3, 4), "weight"),
    "RNN": (lambda: nn.RNN(3, 4), "weight_hh_l0"),
    "LSTM": (lambda: nn.LSTM(3, 4, num_layers=2, bidirectional=True), "weight_hh_l1_reverse"),
    "GRUCell": (lambda: nn.GRUCell(3, 4), "weight_hh"),
    "Attention": (lambda: nn.MultiheadAttention(4, 2), "in_proj_weight"),
}


def initialise(module):
    (getattr(module, "reset_parameters", None) or module._reset_parameters)()


@pytest.mark.filterwarnings("ignore:.*is a kernel of shape")
@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("apply", [False, True])
def test_e16_reset_parameters_initialises_the_value(kind, apply, measured):
    make, name = MODULES[kind]
    plain = make()
    m = constrain(copy.deepcopy(plain), name, Sphere())
    with torch.no_grad():
        setattr(m, name, nn.functional.normalize(torch.ones_like(getattr(m, name)), dim=-1))
    kept, keys = original(m, name), list(m.state_dict())
    torch.manual_seed(3)
    m.apply(lambda c: initialise(c) if c is m else None) if apply else initialise(m)
    torch.manual_seed(3)
    initialise(plain)
    expected = nn.functional.normalize(getattr(plain, name), dim=-1)
    assert_close(getattr(m, name), expected)
    assert original(m, name) is kept and list(m.state_dict()) == keys
    others = {k: v for k, v in plain.state_dict().items() if k != name}
    assert_close({k: v for k, v in m.state_dict().items() if k in others}, others)
    if kind == "LSTM":
        measured("reset_parameters() and apply(init) set the value, projected")


@torch_today
def test_e16_reset_parameters_in_torch_today(measured):
    m = torchs.register_parametrization(nn.Linear(4, 4), "weight", Squash())
    before = m.weight.detach().clone()
    m.reset_parameters()
    assert torch.equal(m.weight, before)
    measured("reset_parameters() changes nothing, silently")


def test_e16_apply_on_a_model_that_is_not_parametrized_itself():
    model = nn.Sequential(layer(Sphere()), nn.ReLU(), nn.Linear(3, 3))

    def init(m):
        if isinstance(m, nn.Linear):
            m.weight.data.normal_()
            nn.init.zeros_(m.bias)

    before = model[0].weight.detach().clone()
    model.apply(init)
    assert is_on_sphere(model[0].weight) and not torch.allclose(model[0].weight, before)
    assert not model[0].bias.any()


def test_e16_apply_with_functions_that_write_no_value():
    model = nn.Sequential(layer(Sphere()), nn.Linear(3, 3))
    seen, state = [], copy.deepcopy(model.state_dict())
    model.apply(seen.append)
    assert len(seen) == len(list(model.modules()))
    gathered = []
    model.apply(lambda m: gathered.extend(m.parameters(recurse=False)))
    assert {id(p) for p in gathered} == {id(p) for p in model.parameters()}
    model.apply(lambda m: [p.requires_grad_(False) for p in m.parameters()])
    assert not any(p.requires_grad for p in model.parameters())
    assert_close(model.state_dict(), state)
    model.apply(lambda m: m.requires_grad_(True))
    model[1].apply(lambda m: ours.register_parametrization(m, "weight", Squash()))
    assert ours.is_parametrized(model[1], "weight")
    model.apply(lambda m: constrained.release(m, "weight") if isinstance(m, nn.Linear) else None)
    assert not ours.is_parametrized(model[0]) and is_on_sphere(model[0].weight)


def test_e16_written_and_released_in_one_function():
    m = layer(Sphere())

    def init_and_release(c):
        if c is m:
            nn.init.ones_(c.weight)
            constrained.release(c)

    m.apply(init_and_release)
    assert_close(m.weight.detach(), torch.full((3, 3), 3**-0.5))


def test_e16_foreign_modules_are_initialised_through_their_right_inverse():
    m = squashed()
    m.reset_parameters()
    assert m.weight.abs().max() < 1
    with writable(m):
        nn.init.constant_(m.weight, 0.25)
    assert_close(m.weight.detach(), torch.full((3, 3), 0.25))


def test_e16_without_a_right_inverse_initialisation_is_an_error():
    m = ours.register_parametrization(nn.Linear(3, 3), "weight", OneWay())
    before = m.weight.detach().clone()
    with pytest.raises(RuntimeError, match="OneWay does not implement right_inverse"):
        m.reset_parameters()
    assert_close(m.weight.detach(), before)


# -------------------------------------------------------------------------------- writable()

WAYS = {
    "nn.init": lambda m: nn.init.ones_(m.weight),
    "data replaced": lambda m: setattr(m.weight, "data", torch.ones(3, 3)),
    "data in place": lambda m: m.weight.data.fill_(1),
    "assigned": lambda m: setattr(m, "weight", torch.ones(3, 3)),
    "a Parameter": lambda m: setattr(m, "weight", nn.Parameter(torch.ones(3, 3))),
    "parameters()": lambda m: [nn.init.ones_(p) for p in m.parameters()],
    "numpy": lambda m: m.weight.detach().numpy().fill(1),
}


@pytest.mark.parametrize("way", WAYS)
def test_e16_every_way_of_writing_takes_effect_inside_writable(way, measured):
    m = layer(Sphere())
    kept = original(m)
    with writable(m):
        WAYS[way](m)
        assert m.weight is m.weight and m.weight.is_leaf
        assert_close(m.weight.detach(), torch.ones(3, 3))
    assert_close(m.weight.detach(), torch.full((3, 3), 3**-0.5))
    assert original(m) is kept and m.weight.requires_grad
    if way == "nn.init":
        measured(f"{len(WAYS)} ways of writing take effect inside writable()")


def test_e16_writable_is_all_or_nothing():
    model = nn.Sequential(layer(Sphere()), squashed())
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="Squash"), writable(model):
        nn.init.ones_(model[0].weight)
        nn.init.constant_(model[1].weight, 7.0)  # atanh(7) is NaN
    assert_close(model.state_dict(), before)
    with pytest.raises(ZeroDivisionError), writable(model):
        nn.init.ones_(model[0].weight)
        raise ZeroDivisionError
    assert_close(model.state_dict(), before)


def test_e16_writing_a_value_and_its_originals_is_an_error():
    m = layer(Sphere())
    with pytest.raises(RuntimeError, match="and so were its originals"), writable(m):
        nn.init.ones_(m.weight)
        with torch.no_grad():
            original(m).mul_(-1)


def test_e16_nested_blocks_store_once_and_a_tie_is_written_once():
    model = nn.ModuleDict({"a": layer(Sphere()), "b": nn.Linear(3, 3)})
    constrained.release(model, "a.weight")
    model["b"].weight = model["a"].weight
    constrain(model, "a.weight", Sphere())
    with writable(model):
        with writable(model["a"]):
            nn.init.ones_(model["a"].weight)
        assert model["a"].weight is model["b"].weight
    assert_close(model["b"].weight.detach(), torch.full((3, 3), 3**-0.5))


# ------------------------------------------------------------------------- writes outside of it

WRITES = {
    "nn.init": lambda m: nn.init.zeros_(m.weight),
    "copy_": lambda m: torch.no_grad()(lambda: m.weight.copy_(torch.ones(3, 3)))(),
    "data replaced": lambda m: setattr(m.weight, "data", torch.ones(3, 3)),
    "data in place": lambda m: m.weight.data.mul_(2),
    "mul_": lambda m: torch.no_grad()(lambda: m.weight.mul_(2))(),
    "numpy": lambda m: m.weight.detach().numpy().fill(1),
}


def step(m):
    with torch.no_grad():
        for p in m.parameters():
            p.add_(0.1)


LOOKS = {
    "read": lambda m: m.weight,
    "forward": lambda m: m(torch.ones(1, 3)),
    "compiled": lambda m: torch.compile(m, backend="eager")(torch.ones(1, 3)),
    "exported": lambda m: torch.export.export(m, (torch.ones(1, 3),), strict=False),
    "without gradients": lambda m: torch.no_grad()(lambda: m.weight)(),
    "after a step": lambda m: (step(m), m.weight),
    "after a conversion": lambda m: (m.double(), m.weight),
    "state_dict": lambda m: nn.Sequential(m).state_dict(),
    "deepcopy": copy.deepcopy,
    "pickle": pickle.dumps,
    "removal": lambda m: ours.remove_parametrizations(m, "weight"),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("make", [Positive, Foreign])
def test_e16_a_lost_write_raises_at_the_next_look(write, look, make, measured):
    m = layer(make())
    WRITES[write](m)
    with pytest.raises(RuntimeError, match=r"weight' is computed by .*constrained.writable"):
        LOOKS[look](m)
    _ = m.weight
    if write == look == "read" or (write, look, make) == ("nn.init", "read", Foreign):
        measured(f"{len(WRITES) * len(LOOKS)} lost writes raise, with the cure")


@torch_today
@pytest.mark.parametrize("write", WRITES)
def test_e16_writes_in_torch_today(write, measured):
    m = torchs.register_parametrization(nn.Linear(3, 3), "weight", Foreign())
    before = m.weight.detach().clone()
    WRITES[write](m)
    assert torch.equal(m.weight, before)
    measured("in-place writes vanish, silently")


def test_e16_a_write_that_is_overtaken_needs_no_error():
    m = layer(Positive())
    state = {k: v.clone() for k, v in m.state_dict().items()}
    WRITES["mul_"](m)
    m.weight = torch.ones(3, 3)
    assert_close(m.weight.detach(), torch.ones(3, 3))
    WRITES["mul_"](m)
    m.load_state_dict(state)
    assert_close(m.state_dict(), state)


def test_e16_what_autograd_records_is_no_lost_write():
    m = layer(Foreign())
    for _ in range(2):
        w = m.weight
        w.mul_(2)
        w.sin().sum().backward()
        del w
        _ = m.weight


def sgd_step(m):
    optimizer = torch.optim.SGD(m.parameters(), lr=0.1)
    m(torch.ones(1, 3)).sum().backward()
    optimizer.step()


REPLACED = {"step": sgd_step, "assignment": lambda m: setattr(m, "weight", torch.ones(3, 3))}

LATE_LOOKS = {
    "the next evaluation": lambda m: (step(m), m.weight),
    "state_dict": lambda m: m.state_dict(),
    "removal": lambda m: ours.remove_parametrizations(m, "weight"),
}


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("replace", REPLACED)
@pytest.mark.parametrize("is_read", [True, False])
@pytest.mark.parametrize("look", LATE_LOOKS)
def test_e16_a_write_into_an_earlier_value_is_told_late(grad, replace, is_read, look):
    m = layer(Positive())
    with torch.set_grad_enabled(grad):
        earlier = m.weight
    REPLACED[replace](m)
    value = m.weight.detach().clone() if is_read else None
    with torch.no_grad():
        earlier.clamp_(max=0.1)
    assert value is None or torch.equal(m.weight, value)
    with pytest.warns(UserWarning, match=r"'weight' is computed by .*writable.*a copy") as told:
        LATE_LOOKS[look](m)
    assert len(told) == 1 and told[0].filename == __file__
    _ = m.weight


def test_e16_what_is_no_write_into_an_earlier_value():
    m = layer(Positive())
    for _ in range(8):
        earlier = m.weight
        with torch.no_grad():
            detached = m.weight
        sgd_step(m)
        _ = m.weight
        # A copy, and a computation of which autograd has a record.
        earlier.detach().clone().mul_(2)
        earlier.mul_(2)
        assert not detached.requires_grad
    m.state_dict()


# ------------------------------------------------------------------------------- BatchNorm


def test_e16_statistics_of_batch_norm_are_updated(measured):
    m, plain = constrain(nn.BatchNorm1d(3), "running_var", "positive"), nn.BatchNorm1d(3)
    for _ in range(5):
        x = 3 * torch.randn(6, 3)
        assert_close(m(x), plain(x))
    assert_close(m.running_var, plain.running_var)
    assert m.num_batches_tracked == 5
    m.eval(), plain.eval()
    assert_close(m(x), plain(x))
    m.reset_running_stats()
    assert_close(m.running_var, torch.ones(3))
    measured("running_var is updated")


@torch_today
def test_e16_statistics_of_batch_norm_in_torch_today(measured):
    m = torchs.register_parametrization(nn.BatchNorm1d(3), "running_var", nn.ReLU())
    m(3 * torch.randn(6, 3))
    assert_close(m.running_var, torch.ones(3))
    measured("running_var stays at 1")
