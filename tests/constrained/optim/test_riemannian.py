"""Riemannian optimizers: states, groups, plain parameters, faults; the hooks leave them alone."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import constrained
from constrained import (
    InfeasibleError,
    NonfiniteGradientError,
    assert_feasible,
    constrain,
    get,
)
from constrained.constraint.errors import OutOfRangeError
from constrained.optim import RiemannianAdam, RiemannianCG, RiemannianLBFGS, RiemannianSGD
from constrained.training import projected_step
from tests.constrained.optim.problems import gaussian, generator, regression

OPTIMIZERS = {
    "SGD": (RiemannianSGD, {"lr": 0.05, "momentum": 0.9}),
    "Adam": (RiemannianAdam, {"lr": 0.05, "amsgrad": True}),
    "entry": (RiemannianAdam, {"lr": 0.05, "second_moment": "entry"}),
    "CG": (RiemannianCG, {"max_iter": 3}),
    "LBFGS": (RiemannianLBFGS, {"max_iter": 3, "history_size": 4}),
}
STEPWISE = ["SGD", "Adam", "entry"]
SEARCHING = ["CG", "LBFGS"]


def made(kind, params, **more):
    cls, settings = OPTIMIZERS[kind]
    return cls(params, **{**settings, **more})


def run(problem, optimizer, steps, schedule=None):
    def closure():
        optimizer.zero_grad()
        loss = problem.loss(problem.model)
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)
        if schedule is not None:
            schedule.step()
    return [p.detach().clone() for p in problem.model.parameters()]


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_goes_on_from_a_file_to_the_bit(kind, dtype):
    problem = regression()
    problem.model.to(dtype)
    problem = problem._replace(loss=float_loss(dtype))
    optimizer = made(kind, problem.model.parameters())
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    run(problem, optimizer, 4, schedule)
    file = io.BytesIO()
    everything = (problem.model, optimizer, schedule)
    torch.save([x.state_dict() for x in everything], file)
    expected = run(problem, optimizer, 4, schedule)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    fresh = regression()._replace(loss=problem.loss)
    fresh.model.to(dtype)
    again = made(kind, fresh.model.parameters())
    resumed = (fresh.model, again, torch.optim.lr_scheduler.ExponentialLR(again, 0.9))
    for x, state in zip(resumed, saved, strict=True):
        x.load_state_dict(state)
    for one, another in zip(run(fresh, again, 4, resumed[2]), expected, strict=True):
        assert torch.equal(one, another)
    assert_feasible(fresh.model)


def float_loss(dtype):
    X, Y = gaussian(20, 5).to(dtype), gaussian(20, 5, seed=1).to(dtype)
    return lambda m: (m.scale * X @ m.W + m.bias - Y).square().mean()


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_copies_and_pickles_go_on(kind):
    problem = regression()
    model, optimizer = problem.model, made(kind, problem.model.parameters())
    run(problem, optimizer, 3)
    copies = [
        copy.deepcopy((model, optimizer)),
        pickle.loads(pickle.dumps((model, optimizer))),
    ]
    expected = run(problem, optimizer, 3)
    for other_model, other in copies:
        found = run(problem._replace(model=other_model), other, 3)
        assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_hooks_do_not_act_on_it_twice(kind, monkeypatch):
    problem = regression()
    optimizer = made(kind, problem.model.parameters())
    calls = []
    for name in ("_bring_back", "_prepare", "end_of_step"):
        monkeypatch.setattr(projected_step, name, lambda *args, name=name, **kw: calls.append(name))
    run(problem, optimizer, 3)
    assert calls == []
    assert_feasible(problem.model)
    # What it has left in the set counts as such, and its steps are counted.
    (record,) = vars(problem.model)["_attached_constraints"].values()
    assert record.steps == 3
    assert record.is_clean(problem.model.W)
    monkeypatch.undo()
    torch.optim.SGD(problem.model.parameters(), lr=0.1).step()
    assert_feasible(problem.model)


@pytest.mark.parametrize(
    ("cls", "reference", "settings"),
    [
        (RiemannianSGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
        (RiemannianSGD, torch.optim.SGD, {"lr": 0.1, "weight_decay": 0.1}),
        (RiemannianAdam, torch.optim.Adam, {"lr": 0.1, "weight_decay": 0.1}),
        (RiemannianAdam, torch.optim.Adam, {"lr": 0.1, "betas": (0.8, 0.9), "amsgrad": True}),
    ],
)
def test_plain_parameters_are_trained_as_by_torch(cls, reference, settings):
    ends = []
    for optimizer_class in (cls, reference):
        parameter = nn.Parameter(gaussian(4, 3))
        optimizer = optimizer_class([parameter], **settings)
        for seed in range(20):
            parameter.grad = gaussian(4, 3, seed=seed)
            optimizer.step()
        ends.append(parameter.detach())
    torch.testing.assert_close(*ends, rtol=1e-12, atol=1e-12)


def test_one_second_moment_for_each_element_or_entry():
    shapes = {"orthogonal": (2, 1, 1), "sphere": (2, 5, 1), "nonnegative": (2, 5, 3)}
    for spec, expected in shapes.items():
        for kind, shape in (("element", expected), ("entry", (2, 5, 3))):
            weight = nn.Parameter(get(spec)().sample((2, 5, 3), generator=generator()))
            optimizer = RiemannianAdam([weight], lr=0.1, second_moment=kind, constraint=spec)
            weight.grad = gaussian(2, 5, 3).float()
            before = weight.detach().clone()
            optimizer.step()
            assert optimizer.state[weight]["exp_avg_sq"].shape == shape
            if kind == "element" and spec == "orthogonal":
                # The learning rate is the length of the first step.
                length = (weight.detach() - before).flatten(1).norm(dim=-1)
                torch.testing.assert_close(length, torch.full((2,), 0.1), rtol=0.02, atol=0)


@pytest.mark.parametrize("kind", STEPWISE)
def test_groups_have_their_own_constraints_and_settings(kind):
    square = nn.Parameter(get("orthogonal")().sample((5, 5), generator=generator()))
    rows = nn.Parameter(get("sphere")().sample((4, 5), generator=generator()))
    idle = nn.Parameter(get("sphere")().sample((4, 5), generator=generator(1)))
    bias = nn.Parameter(torch.zeros(5))
    before = idle.detach().clone()
    optimizer = made(
        kind,
        [
            {"params": [square]},
            {"params": [rows, idle], "constraint": "sphere", "lr": 0.01},
        ],
        constraint="orthogonal",
    )
    optimizer.add_param_group({"params": [bias], "constraint": "real"})
    losses = []
    for _ in range(50):
        optimizer.zero_grad()
        loss = (rows @ square + bias).square().sum() + (rows @ square).sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert torch.equal(idle, before)
    assert get("sphere")().contains(rows.detach()).all()
    assert get("orthogonal")().contains(square.detach())
    assert optimizer.step() is None


@pytest.mark.parametrize("kind", SEARCHING)
def test_line_searches_go_along_one_curve_for_all_groups(kind):
    problem = regression()
    W, scale, bias = problem.model.parameters()
    groups = [{"params": [W]}, {"params": [scale, bias]}]
    optimizer = made(kind, groups, max_iter=100)
    alone = regression()
    expected = run(alone, made(kind, alone.model.parameters(), max_iter=100), 2)
    assert all(map(torch.equal, run(problem, optimizer, 2), expected))
    with pytest.raises(ValueError, match=r"lr must be the same for all of them: 1\.0, not 0\.1"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "lr": 0.1})
    with pytest.raises(TypeError, match="needs a closure"):
        optimizer.step()


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_after_a_gradient_that_is_not_finite_all_is_as_before(kind, broken):
    problem = regression()
    optimizer = made(kind, problem.model.parameters())
    run(problem, optimizer, 3)
    values = [p.detach().clone() for p in problem.model.parameters()]
    state = copy.deepcopy(optimizer.state_dict())
    bad = problem._replace(loss=lambda m: problem.loss(m) * broken)
    with pytest.raises(NonfiniteGradientError, match=r"^'W': its gradient holds NaN or infinity"):
        run(bad, optimizer, 1)
    assert all(map(torch.equal, problem.model.parameters(), values))
    assert repr(state) == repr(optimizer.state_dict())


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_such_a_gradient_is_left_out_if_told_so(kind):
    problem = regression()
    constrained.release(problem.model, "W")
    constrain(
        problem.model, {"W": {"name": "orthogonal", "mode": "project", "on_nonfinite": "skip"}}
    )
    optimizer = made(kind, problem.model.parameters())
    run(problem, optimizer, 3)
    before = problem.model.W.detach().clone()
    bad = problem._replace(loss=lambda m: problem.loss(m) + m.W.sum() * torch.nan)
    run(bad, optimizer, 1)
    assert torch.equal(problem.model.W, before)
    start = problem.gap()
    run(problem, optimizer, 5)
    assert problem.gap() < start
    assert_feasible(problem.model)


@pytest.mark.parametrize("kind", STEPWISE)
def test_a_gradient_of_a_constraint_of_the_group_is_checked(kind):
    weight = nn.Parameter(torch.eye(3))
    optimizer = made(kind, [("w", weight)], constraint="orthogonal")
    weight.grad = torch.full((3, 3), torch.nan)
    with pytest.raises(NonfiniteGradientError, match="^'w': its gradient holds NaN or infinity"):
        optimizer.step()
    assert torch.equal(weight, torch.eye(3))


def test_steps_that_end_in_infinity():
    def model(**more):
        layer = nn.Linear(3, 3, bias=False)
        return constrain(layer, {"weight": {"name": "orthogonal", "mode": "project", **more}})

    for settings, raises in (({}, True), ({"on_nonfinite": "skip"}, False)):
        layer = model(**settings)
        before = layer.weight.detach().clone()
        optimizer = RiemannianSGD(layer.parameters(), lr=1e30, momentum=0.9)
        layer.weight.grad = 1e15 * gaussian(3, 3).float()
        if raises:
            with pytest.raises(OutOfRangeError, match=r"'weight': optimizer step 1 ends in NaN"):
                optimizer.step()
        else:
            optimizer.step()
        assert torch.equal(layer.weight, before)
        assert not optimizer.state[layer.weight]
    bare = nn.Parameter(torch.eye(3))
    optimizer = RiemannianSGD([bare], lr=1e30, constraint="orthogonal")
    bare.grad = 1e15 * gaussian(3, 3).float()
    with pytest.raises(OutOfRangeError, match="parameter 0 of its group: this step of it ends"):
        optimizer.step()
    assert torch.equal(bare, torch.eye(3))


@pytest.mark.parametrize("kind", SEARCHING)
def test_a_loss_that_is_not_finite_on_the_way_is_too_far(kind):
    x = nn.Parameter(torch.tensor([0.5], dtype=torch.float64))
    optimizer = made(kind, [x], lr=100.0, max_iter=50, max_eval=200)

    def closure():
        optimizer.zero_grad()
        # Defined for x > 0 only, and least at x = 2.
        loss = (x / 2 - x.log()).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert abs(x.item() - 2) < 1e-5


@pytest.mark.parametrize("kind", SEARCHING)
def test_an_error_in_the_closure_leaves_the_last_point(kind):
    problem = regression()
    optimizer = made(kind, problem.model.parameters(), max_iter=50)
    calls, seen = [], []

    def closure():
        seen.append([p.detach().clone() for p in problem.model.parameters()])
        calls.append(len(calls))
        if len(calls) == 2:
            raise KeyboardInterrupt
        optimizer.zero_grad()
        loss = problem.loss(problem.model)
        loss.backward()
        return loss

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure)
    assert all(map(torch.equal, problem.model.parameters(), seen[0]))
    assert_feasible(problem.model)
    start = problem.gap()
    optimizer.step(closure)
    assert problem.gap() < start


@pytest.mark.parametrize("kind", SEARCHING)
def test_a_loss_that_is_not_finite_at_the_beginning_is_an_error(kind):
    x = nn.Parameter(torch.ones(2))
    optimizer = made(kind, [x])

    def closure():
        x.grad = torch.ones(2)
        return torch.tensor(torch.inf)

    with pytest.raises(ValueError, match="The loss is inf at the beginning of a step"):
        optimizer.step(closure)
    assert torch.equal(x, torch.ones(2))


VIEWS = [
    ({"name": "orthogonal", "view": "o i h w -> o (i h w)"}, (4, 3, 2, 2)),
    ({"name": "sphere", "view": "o i (h w) -> (o i) (h w)", "h": 2}, (4, 3, 6)),
]


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize(("spec", "shape"), VIEWS, ids=str)
def test_views(kind, spec, shape):
    model = nn.Module()
    model.W = nn.Parameter(torch.randn(shape, generator=generator()))
    constrain(model, {"W": {**spec, "mode": "project"}})
    target = torch.randn(shape, generator=generator(1))
    optimizer = made(kind, model.parameters())
    losses = []

    def closure():
        optimizer.zero_grad()
        loss = (model.W - target).square().sum()
        loss.backward()
        losses.append(loss.item())
        return loss

    for _ in range(20):
        optimizer.step(closure)
        assert_feasible(model)
    assert losses[-1] < losses[0] - 1


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_complex_matrices(kind):
    unitary = get("unitary")()
    W = nn.Parameter(unitary.sample((4, 4), generator=generator(), dtype=torch.complex128))
    B = torch.randn(4, 4, generator=generator(1), dtype=torch.complex128)
    optimizer = made(kind, [W], constraint="unitary")
    least = -float(torch.linalg.svdvals(B).sum())

    def closure():
        optimizer.zero_grad()
        loss = -(W.conj() * B).real.sum()
        loss.backward()
        return loss

    for _ in range(300 if kind in STEPWISE else 10):
        loss = optimizer.step(closure)
    assert unitary.contains(W.detach())
    assert abs(float(loss.detach()) / least - 1) < 1e-2


@pytest.mark.parametrize("kind", STEPWISE)
def test_bfloat16_under_autocast(kind):
    sphere = get("orthogonal")()
    W = nn.Parameter(sphere.sample((8, 4), generator=generator()).bfloat16())
    optimizer = made(kind, [W], constraint="orthogonal")
    with torch.autocast("cpu", torch.bfloat16):
        for seed in range(10):
            W.grad = gaussian(8, 4, seed=seed).bfloat16()
            optimizer.step()
    assert W.dtype == torch.bfloat16
    assert sphere.contains(W.detach())


@pytest.mark.parametrize("kind", STEPWISE)
def test_with_a_gradient_scaler(kind):
    ends = []
    for enabled in (False, True):
        W = nn.Parameter(get("orthogonal")().sample((6, 6), generator=generator()))
        target = torch.randn(6, 6, generator=generator(4))
        optimizer = made(kind, [W], constraint="orthogonal")
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=enabled)
        for step in range(4):
            optimizer.zero_grad()
            # The scaler leaves a step out whose gradients overflow.
            loss = (W * target).sum() * (torch.inf if enabled and step == 2 else 1)
            scaler.scale(loss).backward()
            if enabled or step != 2:
                scaler.step(optimizer)
            scaler.update()
        ends.append(W.detach())
    assert torch.equal(*ends)


def test_errors_of_the_constructors():
    linear = nn.Linear(4, 4)
    named = [("weight", linear.weight)]
    for cls, _ in OPTIMIZERS.values():
        with pytest.raises(InfeasibleError, match=r"^'weight': orthogonal\(\)"):
            cls(named, constraint="orthogonal")
        with pytest.raises(ValueError, match=r"lr must be at least 0 and finite, not -1\.0"):
            cls(named, lr=-1.0)
        with pytest.raises(ValueError, match="Did you mean 'orthogonal'"):
            cls(named, constraint="orthogonl")
    with pytest.raises(ValueError, match=r"momentum must be at least 0 and below 1, not 1\.0"):
        RiemannianSGD(named, momentum=1.0)
    with pytest.raises(ValueError, match="nesterov=True needs a momentum"):
        RiemannianSGD(named, nesterov=True)
    with pytest.raises(ValueError, match=r"betas\[1\] must be at least 0 and below 1, not 1\.5"):
        RiemannianAdam(named, betas=(0.9, 1.5))
    with pytest.raises(ValueError, match="second_moment must be 'element' or 'entry', not 'row'"):
        RiemannianAdam(named, second_moment="row")
    with pytest.raises(ValueError, match="history_size must be at least 1"):
        RiemannianLBFGS(named, history_size=0)
    with pytest.raises(ValueError, match="max_iter must be at least 1"):
        RiemannianCG(named, max_iter=0)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_sparse_gradients_are_refused(kind):
    embedding = nn.Embedding(5, 3, sparse=True)
    optimizer = made(kind, embedding.parameters())

    def closure():
        optimizer.zero_grad()
        loss = embedding(torch.tensor([1, 2])).sum()
        loss.backward()
        return loss

    with pytest.raises(TypeError, match="its gradient is sparse"):
        optimizer.step(closure)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_tensor_that_is_computed_from_free_parameters_is_trained_by_these(kind):
    model = constrain(nn.Linear(4, 4, bias=False), "weight", "orthogonal")
    target = torch.randn(4, 4, generator=generator())
    optimizer = made(kind, model.parameters())
    losses = []

    def closure():
        optimizer.zero_grad()
        loss = -(model.weight * target).sum()
        loss.backward()
        losses.append(loss.item())
        return loss

    for _ in range(30):
        optimizer.step(closure)
        assert_feasible(model)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_nothing_to_do(kind):
    empty = nn.Parameter(torch.zeros(0, 3))
    frozen = nn.Parameter(torch.ones(2), requires_grad=False)
    optimizer = made(kind, [empty, frozen])
    optimizer.step(lambda: torch.zeros(()))
    empty.grad = torch.zeros(0, 3)
    optimizer.step(lambda: torch.zeros(()))
    assert torch.equal(frozen, torch.ones(2))
