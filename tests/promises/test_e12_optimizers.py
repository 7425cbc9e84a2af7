"""E12: `optimizer=` replaces its parameters; without it a warning names those that are stale."""

import copy
import gc
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize as torchs
from torch.testing import assert_close

import constrained.parametrize as ours
from constrained import constrain, release
from tests.promises.counting import Anchored
from tests.promises.foreign import Scaled, Split, Squash

torch_today = pytest.mark.torch_today


class Transposed(nn.Module):
    """A parametrization with one original of another shape, which keeps its identity."""

    def forward(self, x):
        return x.mT

    def right_inverse(self, y):
        return y.mT.contiguous()


class Scale(nn.Module):
    """A parametrization with a trained parameter of its own."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return x * self.scale

    def right_inverse(self, y):
        return y / self.scale


MAKERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1, amsgrad=True),
    "adamw foreach": lambda p: torch.optim.AdamW(p, lr=0.1, foreach=True),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1, initial_accumulator_value=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.5),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.1),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3),
}


def step(optimizer, model, x=None):
    """One step of an optimizer, of any kind."""
    x = torch.ones(2, 3) if x is None else x

    def closure():
        optimizer.zero_grad()
        loss = (model(x) - 1).pow(2).sum()
        loss.backward()
        return loss

    return optimizer.step(closure)


def held(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def same(a, b):
    return len(a) == len(b) and all(x is y for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("constraint", [Split, Transposed, "low_rank(rank=1)", "orthogonal"])
def test_e12_training_goes_on_through_constrain_and_release(make, constraint):
    """Every kind of optimizer trains all parameters in each step, without an error."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    constraint = constraint() if isinstance(constraint, type) else constraint
    optimizer = make(model.parameters())
    step(optimizer, model)
    change = [
        lambda: constrain(model, "0.weight", constraint, optimizer=optimizer),
        lambda: release(model, optimizer=optimizer),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for do in change:
            do()
            assert same(held(optimizer), list(model.parameters()))
            before = [p.detach().clone() for p in model.parameters()]
            step(optimizer, model)
            for p, old in zip(model.parameters(), before, strict=True):
                assert torch.isfinite(p).all() and not torch.equal(p, old)


def check_trained(change):
    """Check that an optimizer made before a change trains the weight after it."""
    model = nn.Linear(3, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    change(model, optimizer)
    before = model.weight.detach().clone()
    step(optimizer, model)
    return float((model.weight.detach() - before).abs().max())


def test_e12_an_optimizer_made_before_trains_several_originals(measured):
    def register(m, o):
        ours.register_parametrization(m, "weight", Split(), optimizer=o)

    def register_and_remove(m, o):
        register(m, o)
        ours.remove_parametrizations(m, "weight", optimizer=o)

    moved = [check_trained(change) for change in (register, register_and_remove)]
    measured(f"one step moves the weight by {min(moved):.2g}")
    assert min(moved) > 1e-3


@torch_today
def test_e12_an_optimizer_made_before_in_torch_today(measured):
    def register(m, o):
        torchs.register_parametrization(m, "weight", Split())

    def register_and_remove(m, o):
        register(m, o)
        torchs.remove_parametrizations(m, "weight")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        moved = [check_trained(change) for change in (register, register_and_remove)]
    measured(f"one step moves the weight by {max(moved)}, no warning")
    assert max(moved) == 0


@pytest.mark.parametrize("make", ["momentum", "adam", "adamw foreach", "adamw fused", "adagrad"])
def test_e12_moments_go_to_what_has_their_shape(make, measured):
    model = nn.Linear(3, 4)
    optimizer = MAKERS[make](model.parameters())
    step(optimizer, model)
    state = copy.deepcopy(optimizer.state[model.weight])
    constrain(model, "weight", Split(), optimizer=optimizer)
    originals = [*model.parametrizations.weight.originals()]
    for original in originals:
        assert optimizer.state[original].keys() == state.keys()
        for key, value in state.items():
            assert_close(optimizer.state[original][key], value)
    if "momentum_buffer" in state:
        a, b = (optimizer.state[p]["momentum_buffer"] for p in originals)
        assert a.data_ptr() != b.data_ptr()
    assert len(optimizer.state) == 3
    release(model, optimizer=optimizer)
    assert_close(dict(optimizer.state[model.weight]), dict(state))
    measured("moments kept where shapes agree")


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_e12_moments_of_another_shape_are_dropped(make):
    """The original is the old parameter object, but its moments no longer have its shape."""
    model = nn.Linear(3, 5)
    optimizer = make(model.parameters())
    step(optimizer, model)
    weight = model.weight
    constrain(model, "weight", Transposed(), optimizer=optimizer)
    assert model.parametrizations.weight.original is weight and weight.shape == (3, 5)
    step(optimizer, model)
    for key, value in optimizer.state[weight].items():
        if isinstance(value, torch.Tensor) and value.dim() == 2 and "var" not in key:
            assert value.shape == (3, 5)


def test_e12_the_group_and_its_settings_are_kept():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    groups = [
        {"params": [model[0].bias, model[1].bias], "lr": 1.0},
        {"params": [model[1].weight, model[0].weight], "lr": 0.5, "weight_decay": 0.1},
    ]
    optimizer = torch.optim.AdamW(groups)
    constrain(model, "*.weight", Split(), optimizer=optimizer)
    a, b = (model[i].parametrizations.weight for i in (0, 1))
    assert same(optimizer.param_groups[0]["params"], [model[0].bias, model[1].bias])
    assert same(optimizer.param_groups[1]["params"], [*b.originals(), *a.originals()])
    assert [g["lr"] for g in optimizer.param_groups] == [1.0, 0.5]
    release(model, optimizer=optimizer)
    assert same(optimizer.param_groups[1]["params"], [model[1].weight, model[0].weight])


def test_e12_names_of_parameters_follow():
    model = nn.Sequential(nn.Linear(3, 3))
    outer = nn.ModuleDict({"net": model})
    optimizer = torch.optim.SGD(outer.named_parameters(), lr=0.1)
    for do in (
        lambda: constrain(model, "0.weight", Split(), optimizer=optimizer),
        lambda: release(model, optimizer=optimizer),
        lambda: constrain(model, "0.weight", Squash(), optimizer=optimizer),
    ):
        do()
        names = optimizer.param_groups[0]["param_names"]
        assert (
            dict(zip(names, held(optimizer), strict=True)).keys()
            == dict(outer.named_parameters()).keys()
        )
        for name, p in zip(names, held(optimizer), strict=True):
            assert outer.get_parameter(name) is p
        optimizer.load_state_dict(optimizer.state_dict())


def test_e12_a_scheduler_goes_on():
    model = nn.Linear(3, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    constrain(model, "weight", Split(), optimizer=optimizer)
    step(optimizer, model)
    scheduler.step()
    before = [p.detach().clone() for p in model.parameters()]
    step(optimizer, model)
    assert scheduler.get_last_lr() == [0.5]
    for p, old in zip(model.parameters(), before, strict=True):
        assert_close(p, old - 0.5 * p.grad)


def test_e12_tied_tensors_are_handed_over_once():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    step(optimizer, model)
    constrain(model, "0.weight", Split(), optimizer=optimizer)
    assert same(held(optimizer), list(model.parameters()))
    step(optimizer, model)
    release(model, optimizer=optimizer)
    assert model[0].weight is model[1].weight
    assert same(held(optimizer), list(model.parameters()))


def test_e12_frozen_tensors_and_constants():
    model = nn.Linear(3, 3)
    model.weight.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    constrain(model, "weight", Split(), optimizer=optimizer)
    assert same(held(optimizer), list(model.parameters()))
    assert not any(p.requires_grad for p in model.parametrizations.weight.originals())
    release(model, optimizer=optimizer)
    constrain(model, "weight", Anchored(), optimizer=optimizer)
    assert same(held(optimizer), list(model.parameters())) and len(held(optimizer)) == 2


def test_e12_what_a_parametrization_trains_itself_comes_and_goes():
    model = nn.Linear(3, 3)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    step(optimizer, model)
    ours.register_parametrization(model, "weight", Split(), optimizer=optimizer)
    ours.register_parametrization(model, "weight", Scale(), optimizer=optimizer)
    assert same(held(optimizer), list(model.parameters())) and len(held(optimizer)) == 4
    step(optimizer, model)
    assert not torch.equal(model.parametrizations.weight[1].scale, torch.ones(()))
    ours.remove_parametrizations(model, "weight", index=1, optimizer=optimizer)
    assert same(held(optimizer), list(model.parameters())) and len(held(optimizer)) == 3
    ours.remove_parametrizations(model, "weight", optimizer=optimizer)
    assert same(held(optimizer), list(model.parameters()))
    assert all(any(p is q for q in held(optimizer)) for p in optimizer.state)


def test_e12_what_is_no_optimizer_is_refused():
    model = constrain(nn.Linear(3, 3), "weight", Split())
    for do in (ours.register_parametrization, ours.remove_parametrizations):
        arguments = [Scaled()] if do is ours.register_parametrization else []
        with pytest.raises(TypeError, match=r"torch\.optim\.Optimizer, got str"):
            do(model, "weight", *arguments, optimizer="adam")
    assert len(model.parametrizations.weight) == 1


TOLD = {
    "constrain": lambda m, o: constrain(m, "a.weight", Split(), optimizer=o),
    "register": lambda m, o: ours.register_parametrization(m, "a.weight", Scaled(), optimizer=o),
    "append": lambda m, o: ours.register_parametrization(m, "b.weight", Scaled(), optimizer=o),
    "remove": lambda m, o: ours.remove_parametrizations(m, "b.weight", optimizer=o),
    "remove one": lambda m, o: ours.remove_parametrizations(m, "b.weight", index=0, optimizer=o),
    "release": lambda m, o: release(m, "b.weight", optimizer=o),
    "release all": lambda m, o: release(m, optimizer=o),
}


def half_constrained():
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    return constrain(model, "b.weight", Split())


@pytest.mark.parametrize("do", TOLD.values(), ids=TOLD)
def test_e12_an_optimizer_that_does_not_hold_the_tensor_is_refused(do):
    model, other = half_constrained(), nn.Linear(3, 3)
    optimizer = torch.optim.SGD([*other.parameters(), model["a"].bias], lr=0.1)
    before = dict(model.named_parameters()), held(optimizer)
    with pytest.raises(ValueError, match=r"this SGD holds nothing of '[ab]\.weight': give the one"):
        do(model, optimizer)
    now = dict(model.named_parameters())
    assert list(now) == list(before[0])
    assert same(list(now.values()), list(before[0].values()))
    assert same(held(optimizer), before[1])


@pytest.mark.parametrize("do", TOLD.values(), ids=TOLD)
def test_e12_a_tensor_that_nobody_trains_need_not_be_held(do):
    model = half_constrained().requires_grad_(False)
    optimizer = torch.optim.SGD(nn.Linear(3, 3).parameters(), lr=0.1)
    before = held(optimizer)
    do(model, optimizer)
    assert same(held(optimizer), before)


def test_e12_a_buffer_need_not_be_held():
    model = nn.BatchNorm1d(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    constrain(model, "running_var", "positive", optimizer=optimizer)
    release(model, optimizer=optimizer)
    assert same(held(optimizer), [model.weight, model.bias])


def test_e12_one_of_several_originals_is_enough():
    model = constrain(nn.Linear(3, 3), "weight", Split())
    first = model.parametrizations.weight.original0
    optimizer = torch.optim.SGD([first], lr=0.1)
    release(model, optimizer=optimizer)
    assert same(held(optimizer), [model.weight])


def test_e12_an_error_names_those_that_the_optimizer_lacks():
    model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(6)))
    optimizer = torch.optim.Adam(model[0].parameters())
    lacking = r"this Adam holds nothing of '1\.weight', '2\.weight', '3\.weight' and 2 more: give"
    with pytest.raises(ValueError, match=lacking):
        constrain(model, "*.weight", "orthogonal", optimizer=optimizer)
    assert not any(ours.is_parametrized(layer) for layer in model)
    constrain(model, "*.weight", "orthogonal")
    with pytest.raises(ValueError, match=lacking):
        release(model, optimizer=optimizer)
    assert all(ours.is_parametrized(layer) for layer in model)


def test_e12_a_lazy_tensor_too_must_be_held():
    model = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(ValueError, match=r"this SGD holds nothing of '0\.weight'"):
        optimizer = torch.optim.SGD(nn.Linear(3, 3).parameters(), lr=0.1)
        constrain(model, "0.weight", "orthogonal", optimizer=optimizer)
    assert type(model[0]) is nn.LazyLinear


def test_e12_tied_lazy_tensors_are_with_the_optimizer_once_the_first_has_its_shape():
    model = nn.Sequential(nn.LazyLinear(3, bias=False), nn.LazyLinear(3, bias=False))
    model[1].weight = model[0].weight
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    constrain(model, "0.weight", "low_rank(rank=1)", optimizer=optimizer)
    model(torch.ones(2, 3))
    assert same(held(optimizer), list(model.parameters()))


# ------------------------------------------------------------------------------------ the warning


def model_and_optimizer():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def test_e12_a_step_warns_of_parameters_that_have_left(measured):
    model, optimizer = model_and_optimizer()
    constrain(model, "0.weight", Split())
    with pytest.warns(UserWarning) as caught:
        step(optimizer, model)
    (warning,) = caught
    measured(f"{len(caught)} warning, at the first step")
    assert str(warning.message) == (
        "This SGD holds parameters that have left the model, of '0.weight', and does not train "
        "'0.parametrizations.weight.original0', '0.parametrizations.weight.original1': give the "
        "optimizer to the function that constrains or releases them, as in "
        "constrain(..., optimizer=optimizer), or make it afterwards."
    )
    assert warning.filename == __file__
    # The warning comes only once.
    step(optimizer, model)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_e12_every_optimizer_warns(make):
    model = nn.Linear(3, 3)
    optimizer = make(model.parameters())
    ours.register_parametrization(model, "weight", Split())
    with pytest.warns(UserWarning, match="does not train 'parametrizations.weight.original0'"):
        step(optimizer, model)


def test_e12_removal_warns_too():
    model, optimizer = model_and_optimizer()
    constrain(model, "0.weight", Split(), optimizer=optimizer)
    step(optimizer, model)
    release(model)
    with pytest.warns(UserWarning, match=r"of '0\.weight', and does not train '0\.weight'"):
        step(optimizer, model)


def test_e12_there_and_back_warns_since_the_parameter_is_a_new_one():
    model, optimizer = model_and_optimizer()
    old = model[0].weight
    constrain(model, "0.weight", Split())
    release(model)
    assert model[0].weight is not old
    with pytest.warns(UserWarning, match=r"does not train '0\.weight'"):
        step(optimizer, model)


def test_e12_many_tensors_are_one_sentence():
    model = nn.Sequential(*[nn.Linear(3, 3) for _ in range(9)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    constrain(model, "*.weight", Split())
    with pytest.warns(UserWarning, match=r"'0\.weight', '1\.weight', '2\.weight' and 6 more") as w:
        step(optimizer, model)
    assert len(w) == 1
    constrain(model, "8.bias", Split())
    with pytest.warns(UserWarning, match=r"of '8\.bias', and"):
        step(optimizer, model)


def test_e12_no_warning_without_need():
    """Each of these optimizers has the right parameters; warnings are errors here."""
    model, optimizer = model_and_optimizer()
    constrain(model, "0.weight", Split(), optimizer=optimizer)
    step(optimizer, model)
    constrain(model, "1.weight", Squash())
    step(optimizer, model)
    # The optimizer is made afterwards.
    model, _ = model_and_optimizer()
    constrain(model, "0.weight", Split())
    step(torch.optim.SGD(model.parameters(), lr=0.1), model)
    # The parameters are added by hand.
    model, optimizer = model_and_optimizer()
    constrain(model, "0.weight", Split())
    optimizer.add_param_group({"params": list(model[0].parametrizations.weight.parameters())})
    step(optimizer, model)
    # Another model is constrained.
    model, optimizer = model_and_optimizer()
    other, _ = model_and_optimizer()
    constrain(other, "0.weight", Split())
    step(optimizer, model)
    # The weight is frozen, so it was not trained before either.
    model, optimizer = model_and_optimizer()
    model[0].weight.requires_grad_(False)
    constrain(model, "0.weight", Split())
    step(optimizer, model)


def test_e12_no_warning_when_the_model_is_gone():
    model, optimizer = model_and_optimizer()
    constrain(model, "0.weight", Split())
    del model
    gc.collect()
    optimizer.step()


def test_e12_no_warning_when_the_parameter_is_in_a_model_again():
    model, optimizer = model_and_optimizer()
    old = model[0].weight
    constrain(model, "0.weight", Split())
    release(model)
    model[0].weight = old
    step(optimizer, model)
    constrain(model, "0.weight", Split())
    other = nn.Linear(3, 3)
    other.weight = old
    step(optimizer, model)


def test_e12_no_warning_after_a_failed_attempt():
    model, optimizer = model_and_optimizer()

    class Fails(Split):
        def forward(self, a, b):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        constrain(model, "0.weight", Fails())
    step(optimizer, model)


def test_e12_nothing_is_kept_alive():
    import weakref

    model, optimizer = model_and_optimizer()
    constrain(model, "0.weight", Split())
    with pytest.warns(UserWarning):
        step(optimizer, model)
    watched = [weakref.ref(x) for x in (model, optimizer, held(optimizer)[0])]
    del model, optimizer
    gc.collect()
    assert [w() for w in watched] == [None] * 3


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_e12_a_compiled_step_still_compiles():
    model, optimizer = model_and_optimizer()
    constrain(model, "0.weight", Split(), optimizer=optimizer)
    compiled = torch.compile(optimizer.step, backend="eager")
    (model(torch.ones(2, 3)) - 1).pow(2).sum().backward()
    before = [p.detach().clone() for p in model.parameters()]
    compiled()
    for p, old in zip(model.parameters(), before, strict=True):
        assert not torch.equal(p, old)
