"""NaN in gradients, errors and Ctrl-C in the middle of a step, and changes between two steps."""

import copy
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn, optim

from constrained import assert_feasible, constrain, release
from constrained.constraint.errors import NonfiniteGradientError, OutOfRangeError
from tests.constrained.training.stand_ins import SAM, Lion, Lookahead, Prodigy, ScheduleFree

SETS = {"0.weight": "orthogonal", "1.weight": "simplex", "2.weight": "nonnegative"}

KINDS = {
    "SGD": lambda p: optim.SGD(p, 0.1, momentum=0.9),
    # Torch's fused momentum fails if a tensor has its first gradient later than others.
    "fused SGD": lambda p: optim.SGD(p, 0.1, fused=True),
    "Adam": lambda p: optim.Adam(p, 0.1),
    "fused Adam": lambda p: optim.Adam(p, 0.1, fused=True),
    "foreach AdamW": lambda p: optim.AdamW(p, 0.1, foreach=True),
    "RMSprop": lambda p: optim.RMSprop(p, 0.1, momentum=0.9),
    "Muon": lambda p: optim.Muon(p, 0.1),
    "Lion": lambda p: Lion(p, 0.1),
    "Prodigy": lambda p: Prodigy(list(p)),
    "ScheduleFree": lambda p: ScheduleFree(list(p), 0.1),
    "Lookahead": lambda p: Lookahead(optim.SGD(p, 0.1)),
}

CLOSURES = {
    "SGD": KINDS["SGD"],
    "Lion": KINDS["Lion"],
    "SAM": lambda p: SAM(list(p), optim.SGD, lr=0.1),
    "L-BFGS": lambda p: optim.LBFGS(p, lr=0.1, max_iter=5),
    "L-BFGS with a line search": lambda p: optim.LBFGS(
        p, max_iter=2, line_search_fn="strong_wolfe"
    ),
}


def layers(on_nonfinite="raise", sets=SETS, dtype=torch.float32):
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(3))).to(dtype)
    rule = {path: {"name": name, "on_nonfinite": on_nonfinite} for path, name in sets.items()}
    return constrain(model, rule, mode="project") if rule else model


def backward(model, factor=1.0):
    """Gradients; ``factor`` multiplies what the last layer gets."""
    model.zero_grad()
    x = torch.linspace(-1, 1, 12, dtype=model[0].weight.dtype).reshape(3, 4)
    x = x.to(model[0].weight.device)
    loss = (model[1](model[0](x)) - 1).square().mean()
    loss = loss + (factor * model[2].weight - 0.5).square().sum()
    loss.backward()
    return loss


def tensors_of(value):
    """All tensors and numbers of an optimizer's state, copied."""
    return copy.deepcopy(value)


def same(first, second):
    """Whether two states are equal bit for bit."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def snapshot(model, optimizer):
    return tensors_of([model.state_dict(), dict(optimizer.state_dict()["state"])])


# ---------------------------------------------------------------------- gradients with NaN, raised


@pytest.mark.parametrize("when", [0, 3])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", KINDS)
def test_a_nan_gradient_raises_before_anything_changes(name, value, when):
    model = layers()
    optimizer = KINDS[name](model.parameters())
    for _ in range(when):
        backward(model)
        optimizer.step()
    before = snapshot(model, optimizer)
    backward(model)
    model[2].weight.grad[0, 0] = value
    with pytest.raises(NonfiniteGradientError, match=rf"'2\.weight'.* step {when + 1}, "):
        optimizer.step()
    assert same(before, snapshot(model, optimizer))
    backward(model)
    optimizer.step()
    assert_feasible(model)


@pytest.mark.parametrize("call", [1, 2])
@pytest.mark.parametrize("name", CLOSURES)
def test_a_nan_gradient_in_a_closure_undoes_the_step(name, call):
    model = layers()
    optimizer = CLOSURES[name](model.parameters())
    count = 0

    def closure(broken=None):
        nonlocal count
        count += 1
        loss = backward(model)
        if count == broken:
            model[2].weight.grad[0, 0] = float("nan")
        return loss

    optimizer.step(closure)
    if call == 2 and count < 2:
        pytest.skip("it calls its closure once")
    before, count = snapshot(model, optimizer)[0], 0
    # SAM goes along the first gradient, scaled by the norm of all, and evaluates the second there.
    path = r"'[012]\.weight'" if name == "SAM" and call == 1 else r"'2\.weight'"
    with pytest.raises(NonfiniteGradientError, match=path):
        optimizer.step(lambda: closure(call))
    assert same(before, model.state_dict())
    assert_feasible(model)
    optimizer.step(closure)
    assert_feasible(model)


def test_all_that_is_told_is_checked_before_anything_is_left_out():
    """One tensor is to be skipped and another to raise: the step raises, and loses no gradient."""
    model = layers("skip", {"0.weight": "orthogonal"})
    constrain(model, {"2.weight": "nonnegative"}, mode="project")
    optimizer = optim.SGD(model.parameters(), 0.1)
    backward(model)
    for layer in (model[0], model[2]):
        layer.weight.grad.fill_(float("nan"))
    with pytest.raises(NonfiniteGradientError, match=r"'2\.weight'"):
        optimizer.step()
    assert model[0].weight.grad.isnan().all()


def test_a_sparse_gradient_is_checked():
    table = nn.Embedding(5, 3, sparse=True)
    constrain(table, "weight", "sphere", mode="project")
    optimizer = optim.SGD(table.parameters(), 0.1)
    before = table.weight.detach().clone()
    (table(torch.tensor([1, 1, 3])) * float("inf")).sum().backward()
    with pytest.raises(NonfiniteGradientError, match="'weight'"):
        optimizer.step()
    assert torch.equal(table.weight, before)


# --------------------------------------------------------------------- gradients with NaN, skipped


@pytest.mark.parametrize("when", [0, 3])
@pytest.mark.parametrize("name", KINDS)
def test_a_skipped_tensor_keeps_every_bit(name, when):
    model = layers("skip")
    optimizer = KINDS[name](model.parameters())
    for _ in range(when):
        backward(model)
        optimizer.step()
    weight = model[2].weight
    before = weight.detach().clone()
    state = tensors_of(dict(optimizer.state.get(weight, {})))
    others = model[0].weight.detach().clone()
    backward(model)
    weight.grad[0, 0] = float("nan")
    gradient = weight.grad
    optimizer.step()
    assert torch.equal(weight, before)
    if name not in ("Lookahead",):
        assert same(state, dict(optimizer.state.get(weight, {})))
    assert weight.grad is gradient
    assert not torch.equal(model[0].weight, others)
    assert_feasible(model)
    backward(model)
    optimizer.step()
    assert not torch.equal(weight, before)
    assert_feasible(model)


@pytest.mark.parametrize("call", [1, 2])
@pytest.mark.parametrize("name", CLOSURES)
def test_a_closure_whose_gradient_is_skipped(name, call):
    """L-BFGS has one state for all tensors, and leaves out the step of all of them."""
    model = layers("skip")
    optimizer = CLOSURES[name](model.parameters())
    count = 0

    def closure(broken=None):
        nonlocal count
        count += 1
        loss = backward(model)
        if count == broken:
            model[2].weight.grad[0, 0] = float("nan")
        return loss

    optimizer.step(closure)
    if call == 2 and count < 2:
        pytest.skip("it calls its closure once")
    before, count = model[2].weight.detach().clone(), 0
    everything = snapshot(model, optimizer)
    optimizer.step(lambda: closure(call))
    assert torch.equal(model[2].weight, before)
    if "L-BFGS" in name:
        assert same(everything, snapshot(model, optimizer))
    assert_feasible(model)
    optimizer.step(closure)
    assert_feasible(model)


# ----------------------------------------------------------------------------------- GradScaler


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("on_nonfinite", ["raise", "skip"])
def test_a_grad_scaler_leaves_steps_out_by_itself(fused, on_nonfinite):
    model = layers(on_nonfinite)
    optimizer = optim.AdamW(model.parameters(), 0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1000)
    for step in range(6):
        optimizer.zero_grad()
        before = copy.deepcopy(model.state_dict())
        x = torch.ones(2, 4)
        loss = model(x).square().sum() * (float("inf") if step == 3 else 1)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        assert same(before, model.state_dict()) == (step == 3)
        assert_feasible(model)
    assert scaler.get_scale() == 2.0


@pytest.mark.parametrize("fused", [False, True])
def test_scaled_gradients_lead_to_the_same_steps(fused):
    """A scale of a power of two changes no digit, and decay counts as without it."""
    found = []
    for scale in (None, 1024.0):
        model = layers(dtype=torch.float64)
        optimizer = optim.Adam(model.parameters(), 0.05, weight_decay=0.1, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
        for _ in range(20):
            optimizer.zero_grad()
            x = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4)
            scaler.scale((model(x) - 1).square().sum()).backward()
            scaler.step(optimizer)
            scaler.update()
        assert_feasible(model)
        found.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-8)


# ------------------------------------------------------------------------------ steps too long


@pytest.mark.parametrize("path", SETS)
def test_a_step_that_ends_in_infinity_is_told(path):
    """At once if the tensor cannot be brought back, else before the next step."""
    model = layers(sets={path: SETS[path]})
    optimizer = optim.SGD(model.parameters(), 0.1)
    backward(model)
    optimizer.step()
    optimizer.param_groups[0]["lr"] = float("inf")
    with pytest.raises(OutOfRangeError, match=rf"'{path}': it holds NaN .* step 2; "):
        for _ in range(2):
            backward(model)
            optimizer.step()


@pytest.mark.parametrize("name", ["SGD", "Adam", "fused Adam", "RMSprop", "Lion"])
@pytest.mark.parametrize("path", SETS)
def test_skip_goes_back_to_where_such_a_step_began(path, name):
    model = layers("skip", {path: SETS[path]})
    optimizer = KINDS[name](model.parameters())
    for _ in range(3):
        backward(model)
        optimizer.step()
    before = model.state_dict()[path].clone()
    rate = optimizer.param_groups[0]["lr"]
    optimizer.param_groups[0]["lr"] = float("nan")
    backward(model)
    optimizer.step()
    assert torch.equal(model.state_dict()[path], before)
    optimizer.param_groups[0]["lr"] = rate
    for layer in model:
        layer.weight.data.nan_to_num_(0.1)
    backward(model)
    optimizer.step()
    assert_feasible(model)


# -------------------------------------------------------------------- errors and Ctrl-C in a step


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("name", CLOSURES)
def test_an_error_in_a_closure_undoes_the_step(name, error):
    model = layers()
    optimizer = CLOSURES[name](model.parameters())
    optimizer.step(lambda: backward(model))
    before, count = copy.deepcopy(model.state_dict()), 0

    def closure():
        nonlocal count
        count += 1
        if count == (1 if name in ("SGD", "Lion") else 2):
            raise error("in the middle")
        return backward(model)

    with pytest.raises(error, match="in the middle"):
        optimizer.step(closure)
    assert same(before, model.state_dict())
    optimizer.step(lambda: backward(model))
    assert_feasible(model)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_step_that_is_interrupted_is_mended_by_the_next(error):
    class Interrupted(optim.SGD):
        broken = False

        @torch.no_grad()
        def step(self, closure=None):
            if self.broken:
                self.param_groups[0]["params"][0].add_(1.0)
                raise error("half a step")
            return super().step(closure)

    model = layers()
    optimizer = Interrupted(model.parameters(), 0.1)
    backward(model)
    optimizer.broken = True
    with pytest.raises(error):
        optimizer.step()
    with pytest.raises(ValueError, match=r"'0\.weight'"):
        assert_feasible(model)
    optimizer.broken = False
    backward(model)
    optimizer.step()
    assert_feasible(model)


# ----------------------------------------------------------------------- changes between two steps


def train(model, optimizer, steps=3):
    for _ in range(steps):
        backward(model)
        optimizer.step()


def test_two_optimizers_on_one_tensor():
    model = layers()
    first, second = optim.SGD(model.parameters(), 0.1, momentum=0.9), optim.Adam(model.parameters())
    for _ in range(5):
        train(model, first, 1)
        assert_feasible(model)
        train(model, second, 1)
        assert_feasible(model)


@pytest.mark.parametrize("name", ["SGD", "Adam", "RMSprop", "ScheduleFree"])
def test_constraints_come_and_go_between_steps(name):
    model = layers(sets={})
    optimizer = KINDS[name](model.parameters())
    train(model, optimizer)
    constrain(model, SETS, mode="project")
    train(model, optimizer)
    assert_feasible(model)
    release(model)
    before = model[0].weight.detach().clone()
    train(model, optimizer)
    # Free again: an orthogonal matrix does not stay one.
    weight = model[0].weight
    assert not torch.equal(weight, before)
    assert (weight.mT @ weight - torch.eye(4)).abs().max() > 1e-4
    constrain(model, SETS, mode="project")
    train(model, optimizer)
    assert_feasible(model)


@pytest.mark.parametrize("name", ["SGD", "Adam", "RMSprop", "Muon"])
def test_the_state_of_an_optimizer_is_loaded_between_steps(name):
    model = layers()
    optimizer = KINDS[name](model.parameters())
    train(model, optimizer)
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    train(model, optimizer)
    expected = copy.deepcopy(model.state_dict())
    model.load_state_dict(weights)
    optimizer.load_state_dict(state)
    train(model, optimizer)
    assert same(expected, model.state_dict())
    assert_feasible(model)


def test_lbfgs_goes_on_after_its_state_is_loaded():
    model = layers(dtype=torch.float64)
    optimizer = optim.LBFGS(model.parameters(), max_iter=3)
    for _ in range(3):
        optimizer.step(lambda: backward(model))
    state = copy.deepcopy(optimizer.state_dict())
    again = optim.LBFGS(model.parameters(), max_iter=3)
    again.load_state_dict(state)
    loss = float(backward(model).detach())
    for _ in range(5):
        again.step(lambda: backward(model))
    assert float(backward(model).detach()) < loss
    assert_feasible(model)


def test_a_frozen_tensor_keeps_every_bit():
    model = layers()
    optimizer = optim.Adam(model.parameters(), 0.1)
    train(model, optimizer)
    weight = model[0].weight.requires_grad_(False)
    before = weight.detach().clone()
    weight.grad = None
    for _ in range(3):
        model.zero_grad()
        backward(model)
        optimizer.step()
    assert torch.equal(weight, before)
    weight.requires_grad_(True)
    train(model, optimizer)
    assert not torch.equal(weight, before)
    assert_feasible(model)


def test_a_frozen_tensor_with_a_gradient_is_moved_by_torch_and_brought_back():
    model = layers()
    optimizer = optim.SGD(model.parameters(), 0.1)
    backward(model)
    model[0].weight.requires_grad_(False)
    optimizer.step()
    assert_feasible(model)


@pytest.mark.parametrize("name", ["SGD", "RMSprop"])
def test_the_dtype_changes_between_steps(name):
    """Those that torch lets go on; Adam of torch refuses moments of another dtype."""
    model = layers()
    optimizer = KINDS[name](model.parameters())
    train(model, optimizer)
    model.double()
    train(model, optimizer)
    assert_feasible(model)
    assert model[0].weight.dtype == torch.float64


def test_parameters_that_are_replaced():
    model = layers()
    optimizer = optim.SGD(model.parameters(), 0.1, momentum=0.9)
    train(model, optimizer)
    old = model[0].weight
    model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    assert model[0].weight is not old
    optimizer.step()  # It holds the old tensors, which are in no model any more.
    train(model, optim.Adam(model.parameters(), 0.1))
    assert_feasible(model)


def test_a_copy_is_trained_by_its_own_optimizer():
    model = layers()
    optimizer = optim.Adam(model.parameters(), 0.1)
    train(model, optimizer)
    twin = copy.deepcopy(model)
    before = copy.deepcopy(model.state_dict())
    train(twin, optim.SGD(twin.parameters(), 0.1))
    assert_feasible(twin)
    assert same(before, model.state_dict())
    train(model, optimizer)
    assert_feasible(model)


@pytest.mark.slow
def test_a_pickled_model_is_trained_in_a_new_process(tmp_path):
    model = layers()
    train(model, optim.Adam(model.parameters(), 0.1))
    (tmp_path / "model.pickle").write_bytes(pickle.dumps(model))
    program = (
        "import pickle, sys, torch\n"
        "model = pickle.load(open(sys.argv[1], 'rb'))\n"
        "optimizer = torch.optim.Adam(model.parameters(), 0.1)\n"
        "for _ in range(3):\n"
        "    optimizer.zero_grad()\n"
        "    model(torch.ones(2, 4)).square().sum().backward()\n"
        "    optimizer.step()\n"
        "from constrained import assert_feasible\n"
        "assert_feasible(model)\n"
        "weight = model[0].weight.detach()\n"
        "print(float((weight.mT @ weight - torch.eye(4)).abs().max()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "model.pickle")],
        check=True,
        capture_output=True,
        text=True,
    )
    assert float(done.stdout) < 1e-5
