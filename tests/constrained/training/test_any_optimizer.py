"""Any optimizer keeps tensors in their sets for 1,000 steps, and reaches six known optima.

In both modes: by projections after each step, and by parametrizations. A gap is relative to that of
the start. A method that rescales its gradients takes steps of the length of its learning rate, and
has to lower that to come to rest: it falls exponentially to 1e-4 or 1e-5 of what it was. The gap
that is demanded is GAP: the square of such a last step, which is about 1e-8, with a margin for the
time that the last thousandth of the way takes.
"""

import functools

import pytest
import torch
from torch import optim

from constrained import assert_feasible, load_state_dict
from tests.constrained.training import known_optima, stand_ins
from tests.constrained.training.known_optima import SETS, SMOOTH, Model, problems
from tests.constrained.training.stand_ins import SAM, Lion, Lookahead, Prodigy, ScheduleFree

STEPS = 1000

GAP = 1e-4

#: Softmax reaches the boundary of the simplex in the limit only: an entry falls like the inverse
#: of the number of steps times the learning rate.
SOFTMAX_GAP = 5e-2

#: By what an adaptive method divides its learning rate in the end.
FALL = 1e4

OPTIMIZERS = {
    "SGD": (optim.SGD, {"lr": 0.8}, 1),
    "SGD with momentum": (optim.SGD, {"lr": 0.1, "momentum": 0.9}, 1),
    "SGD with Nesterov's momentum": (optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}, 1),
    "Adam": (optim.Adam, {"lr": 0.1}, FALL),
    "AMSGrad": (optim.Adam, {"lr": 0.1, "amsgrad": True}, FALL),
    "AdamW": (optim.AdamW, {"lr": 0.1, "weight_decay": 0.0}, FALL),
    "Adafactor": (optim.Adafactor, {"lr": 0.1}, FALL),
    "RMSprop": (optim.RMSprop, {"lr": 0.05}, FALL),
    "centered RMSprop": (optim.RMSprop, {"lr": 0.05, "centered": True}, FALL),
    "RMSprop with momentum": (optim.RMSprop, {"lr": 0.01, "momentum": 0.9}, FALL),
    "Adagrad": (optim.Adagrad, {"lr": 1.0}, 1),
    "Adadelta": (optim.Adadelta, {"lr": 10.0}, 1e3),
    "Adamax": (optim.Adamax, {"lr": 0.2}, FALL),
    "NAdam": (optim.NAdam, {"lr": 0.1}, FALL),
    "RAdam": (optim.RAdam, {"lr": 0.3}, FALL),
    "Rprop": (optim.Rprop, {"lr": 0.01}, 1),
    "ASGD": (optim.ASGD, {"lr": 0.8, "lambd": 0.0}, 1),
    "Muon": (optim.Muon, {"lr": 0.2, "weight_decay": 0.0}, 10 * FALL),
    "Lion": (Lion, {"lr": 0.1}, 10 * FALL),
    "Prodigy": (Prodigy, {"lr": 1.0}, FALL),
    "schedule-free SGD": (ScheduleFree, {"lr": 0.8}, 1),
    "schedule-free AdamW": (ScheduleFree, {"lr": 0.05, "second": 0.999}, 1),
    "SAM of SGD": (SAM, {"inner": optim.SGD, "lr": 0.8, "rho": 1e-3}, 1),
    "SAM of Adam": (SAM, {"inner": optim.Adam, "lr": 0.1, "rho": 1e-3}, FALL),
    "Lookahead of SGD": (lambda p, **o: Lookahead(optim.SGD(p, **o)), {"lr": 0.8}, 1),
    "Lookahead of Adam": (lambda p, **o: Lookahead(optim.Adam(p, **o)), {"lr": 0.1}, FALL),
}

ALL = ("SGD with momentum", "Adam", "AdamW", "RMSprop", "Adagrad", "Adadelta", "Adamax", "NAdam")
ALL += ("RAdam", "Rprop", "ASGD", "Adafactor")

#: The same arithmetic in other kernels.
FORMS = {
    f"{kind.__name__} {form}": (kind, {**options, form: True}, fall)
    for form, names in {
        "foreach": ALL,
        "fused": ["SGD with momentum", "Adam", "AdamW", "Adagrad"],
        "maximize": ALL,
    }.items()
    for kind, options, fall in (OPTIMIZERS[name] for name in names)
}

FAST = ("Adam", "RMSprop with momentum", "Lion")

MODES = ["project", "parametrize"]


def slow(names, *but):
    """All of the names as parameters of a test; those that are not excepted run under slow."""
    return [n if n in but else pytest.param(n, marks=pytest.mark.slow) for n in names]


def train(model, kind, options, fall, steps=STEPS):
    """Train a model, in which every tensor is in its set all the time."""
    optimizer = kind(model.parameters(), **options)
    inner = getattr(optimizer, "inner", getattr(optimizer, "base_optimizer", optimizer))
    schedule = optim.lr_scheduler.ExponentialLR(inner, (1 / fall) ** (1 / steps))
    sign = -1 if options.get("maximize") else 1

    def closure():
        model.zero_grad()
        loss = sign * model.loss()
        loss.backward()
        return loss

    for step in range(steps):
        if isinstance(optimizer, SAM):
            optimizer.step(closure)
        else:
            closure()
            # In both ways that torch has of calling it.
            optimizer.step()
        schedule.step()
        if step % 20 == 0 or step < 5:
            assert_feasible(model)
    if isinstance(optimizer, ScheduleFree):
        # The mean of points in a set need not be in it, on a sphere for instance.
        optimizer.eval()
        load_state_dict(model, model.state_dict(), on_infeasible="project")
    assert_feasible(model)
    return optimizer


def check_optimum(model, mode, gap=GAP):
    for name, found in model.gaps().items():
        softmax = mode == "parametrize" and name == "simplex_least_squares"
        # Not below the optimum either: the references are exact to 1e-10.
        assert -1e-8 < found <= (SOFTMAX_GAP if softmax else gap), f"{name}: {found:.1e}"


@pytest.mark.parametrize("name", FAST)
def test_reaches_the_optimum(name):
    model = Model("project", ("nnls", "lasso"))
    train(model, *OPTIMIZERS[name])
    check_optimum(model, "project")


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_reaches_every_optimum(name, mode):
    model = Model(mode)
    train(model, *OPTIMIZERS[name])
    check_optimum(model, mode)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMS)
def test_every_form_reaches_every_optimum(name):
    model = Model("project", ("procrustes", "lasso"))
    train(model, *FORMS[name])
    check_optimum(model, "project")


@pytest.mark.parametrize("form", ["foreach", "fused"])
def test_forms_take_the_same_steps(form):
    """The other kernels round differently; the paths stay together for some steps."""
    found = []
    for options in ({}, {form: True}):
        model = Model("project", ("procrustes", "lasso", "nnls"))
        train(model, optim.Adam, {"lr": 0.01, **options}, 1, steps=20)
        found.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", SETS)
def test_lbfgs_reaches_every_optimum(name, mode, search):
    """To 1e-10 of the first gap on smooth sets. Others end at a boundary, to 1e-6."""
    model = Model(mode, (name,))
    options = {"tolerance_grad": 1e-14, "tolerance_change": 1e-18, "line_search_fn": search}
    optimizer = optim.LBFGS(model.parameters(), lr=0.5 if search is None else 1, **options)

    def closure():
        optimizer.zero_grad()
        loss = model.loss()
        loss.backward()
        return loss

    for _ in range(15):
        optimizer.step(closure)
        assert_feasible(model)
    check_optimum(model, mode, gap=1e-10 if name in SMOOTH else 1e-6)


def test_lbfgs_goes_on_where_it_was():
    """With one iteration a step, the history must fit the points: the path is that of free ones."""
    found = {}
    for mode in MODES:
        model = Model(mode, ("procrustes",))
        optimizer = optim.LBFGS(model.parameters(), max_iter=1, line_search_fn="strong_wolfe")

        def closure(model=model):
            model.zero_grad()
            loss = model.loss()
            loss.backward()
            return loss

        for _ in range(12):
            optimizer.step(closure)
            assert_feasible(model)
        found[mode] = model.procrustes.detach().clone()
        check_optimum(model, mode, 1e-5)
    torch.testing.assert_close(found["project"], found["parametrize"], rtol=1e-8, atol=1e-8)


def test_the_distance_of_the_correlation_matrix_is_that_of_the_literature():
    distance = (8 * problems()["correlation"][2]) ** 0.5
    assert distance == pytest.approx(known_optima.NEAREST_CORRELATION, abs=5e-7)


# ------------------------------------------------------------------------------- weight decay


@functools.cache
def decayed_optimum(decay):
    """The least value of |C x - d|^2 / 2 + decay |x|^2 / 2 over the nonnegative x."""
    from scipy.optimize import nnls

    C, d = known_optima._design(7)
    n = C.shape[1]
    rows = torch.cat((C, decay**0.5 * torch.eye(n, dtype=C.dtype)))
    x, _ = nnls(rows.numpy(), torch.cat((d, torch.zeros(n, dtype=d.dtype))).numpy())
    return torch.from_numpy(x)


COUPLED = ["SGD", "SGD with momentum", "Adam", "NAdam", "RMSprop", "Adagrad", "Adamax"]


@pytest.mark.parametrize("name", slow(COUPLED, "Adam"))
def test_coupled_weight_decay_is_part_of_the_problem(name):
    """The optimum is that of the loss plus half the decay times the square of the norm."""
    kind, options, fall = OPTIMIZERS[name]
    model = Model("project", ("nnls",))
    train(model, kind, {**options, "weight_decay": 0.3}, fall)
    assert (model.nnls[0] - decayed_optimum(0.3)).abs().max() < 1e-3


@pytest.mark.parametrize("name", slow([*COUPLED, "AdamW", "Lion"], "Adam"))
def test_weight_decay_does_not_move_the_optimum_on_a_sphere(name):
    """There the square of the norm is constant, whatever the scales of the entries."""
    kind, options, fall = OPTIMIZERS[name]
    model = Model("project", ("eigenvector", "procrustes"))
    train(model, kind, {**options, "weight_decay": 0.3}, fall)
    check_optimum(model, "project")


def test_decay_counts_when_gradients_are_maximized():
    model = Model("project", ("nnls",))
    train(model, optim.Adam, {"lr": 0.1, "weight_decay": 0.3, "maximize": True}, FALL)
    assert (model.nnls[0] - decayed_optimum(0.3)).abs().max() < 1e-3


# ------------------------------------------------------------------- groups, loops, accumulation


@pytest.mark.parametrize("mode", MODES)
def test_groups_with_different_rates(mode):
    model = Model(mode, ("procrustes", "nnls", "lasso"))
    parameters = list(model.parameters())
    groups = [{"params": parameters[:1], "lr": 0.8}, {"params": parameters[1:], "lr": 0.4}]
    optimizer = optim.SGD(groups)
    schedule = optim.lr_scheduler.CosineAnnealingLR(optimizer, 400, eta_min=0.1)
    for _ in range(400):
        optimizer.zero_grad()
        model.loss().backward()
        optimizer.step()
        schedule.step()
        assert_feasible(model)
    check_optimum(model, mode)


@pytest.mark.parametrize("mode", MODES)
def test_accumulated_gradients(mode):
    """Four backward passes before a step are one with the sum."""
    found = []
    for parts in (1, 4):
        model = Model(mode, ("procrustes", "nnls", "lasso"))
        optimizer = optim.SGD(model.parameters(), 0.5, momentum=0.5)
        for _ in range(30):
            optimizer.zero_grad()
            for _ in range(parts):
                (model.loss() / parts).backward()
            optimizer.step()
        assert_feasible(model)
        found.append(torch.cat([getattr(model, n).detach().flatten() for n in model.names]))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_an_optimizer_in_the_backward_pass(mode):
    """One optimizer for each parameter, which steps as soon as the gradient is there."""
    model = Model(mode, ("procrustes", "nnls", "lasso"))
    optimizers = {p: optim.Adam([p], 0.1) for p in model.parameters()}
    schedules = [optim.lr_scheduler.ExponentialLR(o, 0.99) for o in optimizers.values()]

    def step(parameter):
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    for parameter in optimizers:
        parameter.register_post_accumulate_grad_hook(step)
    for _ in range(STEPS):
        model.loss().backward()
        for schedule in schedules:
            schedule.step()
        assert_feasible(model)
    check_optimum(model, mode)


@pytest.mark.parametrize("mode", MODES)
def test_the_mean_of_the_weights_is_brought_back(mode):
    """An average of members is no member of a set that is not convex, such as a sphere."""
    model = Model(mode, ("procrustes", "eigenvector", "lasso"))
    mean = optim.swa_utils.AveragedModel(model)
    optimizer = optim.SGD(model.parameters(), 0.3)
    for _ in range(30):
        optimizer.zero_grad()
        model.loss().backward()
        optimizer.step()
        mean.update_parameters(model)
    inside = mean.module
    if mode == "project":
        with pytest.raises(ValueError, match="procrustes"):
            assert_feasible(inside)
    load_state_dict(inside, inside.state_dict(), on_infeasible="project")
    assert_feasible(inside)
    assert all(gap < 0.9 for gap in inside.gaps().values())


def test_an_optimizer_that_writes_data_is_followed():
    """Writing through `data` leaves no trace in the version of a tensor."""

    class Plain(optim.Optimizer):
        def __init__(self, params):
            super().__init__(params, {"lr": 0.5})

        @torch.no_grad()
        def step(self):
            for p in self.param_groups[0]["params"]:
                p.data = p.data - 0.5 * p.grad

    model = Model("project", ("procrustes", "nnls"))
    optimizer = Plain(model.parameters())
    for _ in range(100):
        optimizer.zero_grad()
        model.loss().backward()
        optimizer.step()
        assert_feasible(model)


def test_a_loop_without_an_optimizer_is_brought_back_by_loading():
    """Where nothing calls torch's hooks, such as a loop by hand, the user brings tensors back."""
    model = Model("project", ("eigenvector",))
    with torch.no_grad():
        model.eigenvector.add_(1.0)
    with pytest.raises(ValueError, match="eigenvector"):
        assert_feasible(model)
    load_state_dict(model, model.state_dict(), on_infeasible="project")
    assert_feasible(model)


def test_values_outside_are_loaded_only_if_they_are_to_be_projected():
    model = Model("project", ("procrustes", "eigenvector"))
    state = {name: 2 * value for name, value in model.state_dict().items()}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="'procrustes'"):
        load_state_dict(model, state)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    load_state_dict(model, state, on_infeasible="project")
    assert_feasible(model)
    torch.testing.assert_close(dict(model.state_dict()), before)


def test_stand_ins_have_the_states_of_the_packages():
    model = Model("project", ("nnls",))
    for kind, keys in ((Lion, {"exp_avg"}), (Prodigy, {"exp_avg", "exp_avg_sq", "s", "p0"})):
        optimizer = train(model, kind, {}, 1, steps=1)
        assert set(optimizer.state[model.nnls]) == keys
    assert stand_ins.ScheduleFree(model.parameters()).param_groups[0]["train_mode"]
