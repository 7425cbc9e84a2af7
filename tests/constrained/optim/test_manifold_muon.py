"""ManifoldMuon: steps of one length that stay in the set, at every scale of the gradient."""

import copy
import io
import json
import pickle

import pytest
import torch
from torch import nn

from constrained import InfeasibleError, assert_feasible, constrain, get, names
from constrained.optim import ManifoldMuon

SETS = [
    ("orthogonal", (6, 6)),
    ("orthogonal", (7, 7)),
    ("orthogonal", (30, 6)),
    ("orthogonal", (5, 9)),
    ("orthogonal", (3, 6, 4)),
    ({"name": "orthogonal", "map": "cayley"}, (6, 4)),
    ("sphere", (5, 8)),
    ("sphere(radius=3.0)", (8,)),
    ("oblique", (8, 5)),
    ("frobenius_norm(radius=0.1)", (4, 6)),
    ({"name": "orthogonal", "view": "o i h w -> o (i h w)"}, (4, 3, 2, 2)),
    ({"name": "sphere", "view": "o i (h w) -> (o i) (h w)", "h": 2}, (4, 3, 6)),
]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def member(spec, shape, dtype=torch.float32, seed=0):
    from constrained.optim.walked_set import as_plain_data, constraint_of

    constraint = constraint_of(as_plain_data(spec), torch.empty(shape, device="meta"))
    value = constraint.sample(shape, generator=generator(seed), dtype=dtype)
    return nn.Parameter(value), constraint


def direction_like(parameter, seed=1):
    return torch.randn(parameter.shape, generator=generator(seed)).to(parameter.dtype)


@pytest.mark.parametrize(("spec", "shape"), SETS, ids=str)
@pytest.mark.parametrize("scale", [2.0**-60, 1.0, 2.0**60])
def test_stays_in_the_set_at_every_scale(spec, shape, scale):
    parameter, constraint = member(spec, shape)
    optimizer = ManifoldMuon([parameter], lr=0.1, constraint=spec)
    for seed in range(30):
        parameter.grad = scale * direction_like(parameter, seed)
        optimizer.step()
        assert constraint.contains(parameter.detach()).all()
    assert parameter.is_contiguous()


@pytest.mark.parametrize(("spec", "shape"), SETS, ids=str)
def test_the_scale_of_the_gradient_changes_no_bit(spec, shape):
    ends = []
    for scale in (1.0, 2.0**-40, 2.0**40):
        parameter, _ = member(spec, shape)
        optimizer = ManifoldMuon([parameter], lr=0.1, constraint=spec)
        for seed in range(5):
            parameter.grad = scale * direction_like(parameter, seed)
            optimizer.step()
        ends.append(parameter.detach())
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])


def test_the_length_of_a_step_is_the_learning_rate():
    for lr in (1e-3, 0.03):
        parameter, _ = member("orthogonal", (20, 12), torch.float64)
        before = parameter.detach().clone()
        parameter.grad = direction_like(parameter)
        ManifoldMuon([parameter], lr=lr, constraint="orthogonal").step()
        length = torch.linalg.matrix_norm(parameter.detach() - before, 2)
        assert float(length) == pytest.approx(lr, rel=1e-3)
    parameter, _ = member("sphere(radius=5.0)", (3, 7), torch.float64)
    before = parameter.detach().clone()
    parameter.grad = direction_like(parameter)
    ManifoldMuon([parameter], lr=0.01, constraint="sphere(radius=5.0)").step()
    lengths = (parameter.detach() - before).norm(dim=-1)
    torch.testing.assert_close(lengths, torch.full_like(lengths, 0.05), rtol=1e-3, atol=0)


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_as_documented(nesterov):
    parameter, constraint = member("orthogonal", (9, 4), torch.float64)
    optimizer = ManifoldMuon(
        [parameter], lr=0.05, momentum=0.8, nesterov=nesterov, constraint="orthogonal"
    )
    W, m = parameter.detach().clone(), torch.zeros(9, 4, dtype=torch.float64)
    for seed in range(6):
        g = direction_like(parameter, seed)
        m = 0.8 * m + 0.2 * g
        a = constraint.steepest(W, 0.8 * m + 0.2 * g if nesterov else m)
        W = constraint.project(W + 0.05 * a)
        parameter.grad = g.clone()
        optimizer.step()
        assert torch.equal(parameter.grad, g)
        torch.testing.assert_close(parameter.detach(), W)


def decayed(parameter, loss, spec, lr=0.3, steps=300):
    optimizer = ManifoldMuon([parameter], lr=lr, momentum=0.5, constraint=spec)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: (1 - t / steps) ** 2)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        schedule.step()
    return float(loss().detach())


def test_known_optima():
    g = generator(3)
    # Procrustes: the nearest orthonormal columns B with A B = C are the polar factor of A' C.
    A, C = torch.randn(20, 10, generator=g).double(), torch.randn(20, 4, generator=g).double()
    parameter, _ = member("orthogonal", (10, 4), torch.float64)
    found = decayed(parameter, lambda: -(C * (A @ parameter)).sum(), "orthogonal")
    best = -torch.linalg.svdvals(A.T @ C).sum()
    assert found == pytest.approx(float(best), rel=1e-5)
    # The least eigenvalue on the sphere.
    H = A.T @ A
    parameter, _ = member("sphere", (10,), torch.float64)
    found = decayed(parameter, lambda: parameter @ H @ parameter, "sphere")
    assert found == pytest.approx(float(torch.linalg.eigvalsh(H)[0]), rel=1e-4)
    # A linear function on the Frobenius sphere.
    parameter, _ = member("frobenius_norm", (10, 4), torch.float64)
    D = A.T @ C
    found = decayed(parameter, lambda: (D * parameter).sum(), "frobenius_norm")
    assert found == pytest.approx(-float(D.norm()), rel=1e-5)


def test_equal_shapes_are_one_batch_with_the_same_result(monkeypatch):
    shapes = [(8, 8), (8, 8), (20, 4), (8, 8), (20, 4)]
    gradients = [torch.randn(s, generator=generator(i)) for i, s in enumerate(shapes)]

    def moved(together):
        parameters = [member("orthogonal", s, seed=i)[0] for i, s in enumerate(shapes)]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.clone()
        for group in [parameters] if together else [[p] for p in parameters]:
            ManifoldMuon(group, lr=0.1, constraint="orthogonal").step()
        return parameters

    calls = []
    steepest = type(get("orthogonal")()).steepest
    monkeypatch.setattr(
        type(get("orthogonal")()),
        "steepest",
        lambda self, value, gradient: calls.append(value.shape) or steepest(self, value, gradient),
    )
    together = moved(together=True)
    assert calls == [(3, 8, 8), (2, 20, 4)]
    for one, another in zip(together, moved(together=False), strict=True):
        torch.testing.assert_close(one, another, rtol=0, atol=1e-6)


def trained(parameter, optimizer, seeds):
    for seed in seeds:
        parameter.grad = direction_like(parameter, seed)
        optimizer.step()
    return parameter.detach().clone()


@pytest.mark.parametrize(("spec", "shape"), SETS, ids=str)
def test_state_dict_goes_through_a_file(spec, shape):
    parameter, _ = member(spec, shape)
    optimizer = ManifoldMuon([parameter], lr=0.1, constraint=spec)
    trained(parameter, optimizer, range(3))
    file = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "value": parameter.detach()}, file)
    expected = trained(parameter, optimizer, range(3, 6))
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    json.dumps(saved["optimizer"]["param_groups"])
    other = nn.Parameter(saved["value"])
    resumed = ManifoldMuon([other], lr=0.7, constraint=spec)
    resumed.load_state_dict(saved["optimizer"])
    assert torch.equal(trained(other, resumed, range(3, 6)), expected)


def test_copies_and_pickles_go_on():
    parameter, _ = member("orthogonal", (6, 3))
    optimizer = ManifoldMuon([parameter], lr=0.1, constraint="orthogonal")
    trained(parameter, optimizer, range(2))
    copies = [copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))]
    expected = trained(parameter, optimizer, range(2, 4))
    for other in copies:
        (copied,) = other.param_groups[0]["params"]
        assert torch.equal(trained(copied, other, range(2, 4)), expected)


def test_closure_groups_and_parameters_without_gradient():
    square, _ = member("orthogonal", (5, 5))
    rows, sphere = member("sphere", (4, 5))
    idle, _ = member("sphere", (4, 5), seed=2)
    before = idle.detach().clone()
    groups = [{"params": [square]}, {"params": [rows, idle], "constraint": "sphere", "lr": 0.5}]
    optimizer = ManifoldMuon(groups, lr=0.1, constraint="orthogonal")

    def closure():
        optimizer.zero_grad()
        loss = (rows @ square).sum()
        loss.backward()
        return loss

    first = optimizer.step(closure).item()
    for _ in range(20):
        last = optimizer.step(closure).item()
    assert last < first
    assert torch.equal(idle, before)
    assert sphere.contains(rows.detach()).all()
    assert optimizer.step() is None


def test_with_a_gradient_scaler():
    ends = []
    for enabled in (False, True):
        parameter, _ = member("orthogonal", (6, 6))
        target = torch.randn(6, 6, generator=generator(4))
        optimizer = ManifoldMuon([parameter], lr=0.1, constraint="orthogonal")
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=enabled)
        for step in range(4):
            optimizer.zero_grad()
            loss = (parameter * target).sum()
            if step == 2:
                # The scaler leaves a step out whose gradients overflow.
                loss = loss * torch.inf if enabled else loss * 0
            scaler.scale(loss).backward()
            if enabled or step != 2:
                scaler.step(optimizer)
            scaler.update()
        ends.append(parameter.detach())
    assert torch.equal(*ends)


def test_bfloat16():
    parameter, constraint = member("orthogonal", (16, 8), torch.bfloat16)
    optimizer = ManifoldMuon([parameter], lr=0.2, constraint="orthogonal")
    trained(parameter, optimizer, range(10))
    assert parameter.dtype == torch.bfloat16
    assert constraint.contains(parameter.detach()).all()


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_after_a_gradient_that_is_not_finite_all_is_as_before(broken):
    named = [("a", member("orthogonal", (5, 5))[0]), ("b", member("orthogonal", (4, 3))[0])]
    optimizer = ManifoldMuon(named, lr=0.1, constraint="orthogonal")
    for _, parameter in named:
        parameter.grad = direction_like(parameter)
    optimizer.step()
    before = copy.deepcopy(optimizer.state_dict())
    values = [parameter.detach().clone() for _, parameter in named]
    named[1][1].grad[2, 1] = broken
    with pytest.raises(ValueError, match=r"^'b': its gradient holds NaN or infinity"):
        optimizer.step()
    for (_, parameter), value in zip(named, values, strict=True):
        assert torch.equal(parameter, value)
    after = optimizer.state_dict()["state"]
    for key, state in before["state"].items():
        assert torch.equal(state["momentum_buffer"], after[key]["momentum_buffer"])


def test_errors_of_the_constructor():
    linear = nn.Linear(4, 4)
    with pytest.raises(InfeasibleError, match=r"^'weight': orthogonal\(\)"):
        ManifoldMuon([("weight", linear.weight)], constraint="orthogonal")
    with pytest.raises(InfeasibleError, match="^parameter 0 of its group: "):
        ManifoldMuon([linear.weight], constraint="orthogonal")
    with pytest.raises(ValueError, match=r"'bias': orthogonal\(\) needs a tensor of at least 2"):
        ManifoldMuon([("bias", linear.bias)], constraint="orthogonal")
    parameter, _ = member("orthogonal", (4, 4))
    with pytest.raises(ValueError, match=r"positive\(\) has no steepest directions"):
        ManifoldMuon([nn.Parameter(torch.ones(3))], constraint="positive")
    with pytest.raises(ValueError, match="Did you mean 'orthogonal'"):
        ManifoldMuon([parameter], constraint="orthogonl")
    with pytest.raises(ValueError, match=r"learning rate must be .* not -1\.0"):
        ManifoldMuon([parameter], lr=-1.0, constraint="orthogonal")
    with pytest.raises(ValueError, match=r"momentum must be .* not 1\.0"):
        ManifoldMuon([parameter], momentum=1.0, constraint="orthogonal")
    with pytest.raises(ValueError, match="depends on the module"):
        ManifoldMuon([parameter], constraint={"name": "orthogonal", "view": "heads"})
    with pytest.raises(ValueError, match="real floating-point"):
        ManifoldMuon([nn.Parameter(torch.eye(2).cfloat())], constraint="orthogonal")


def test_a_group_that_is_refused_is_not_added():
    parameter, _ = member("orthogonal", (4, 4))
    optimizer = ManifoldMuon([parameter], constraint="orthogonal")
    with pytest.raises(InfeasibleError):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(4, 4))]})
    assert len(optimizer.param_groups) == 1


def test_sparse_gradients_are_refused():
    embedding = nn.Embedding(5, 3, sparse=True)
    with torch.no_grad():
        embedding.weight.copy_(get("sphere")().sample((5, 3)))
    optimizer = ManifoldMuon(embedding.parameters(), constraint="sphere")
    embedding(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(TypeError, match="its gradient is sparse"):
        optimizer.step()


def test_the_originals_of_a_constrained_tensor_may_be_given():
    model = constrain(nn.Linear(6, 6, bias=False), "weight", "orthogonal")
    optimizer = ManifoldMuon(model.named_parameters(), lr=0.1, constraint="orthogonal")
    target = torch.randn(6, 6, generator=generator())
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = -(model.weight * target).sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < -0.9 * float(torch.linalg.svdvals(target).sum()) < losses[0]
    assert get("orthogonal")().contains(model.weight.detach()).all()


def test_without_a_constraint_each_parameter_has_its_own():
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    with pytest.raises(ValueError, match=r"^'0.bias': it has no constraint; call constrain"):
        ManifoldMuon([("0.bias", model[0].bias)])
    constrain(model, {"0.weight": "orthogonal", "2.weight": "sphere"}, mode="project")
    weights = [(name, p) for name, p in model.named_parameters() if name.endswith("weight")]
    optimizer = ManifoldMuon(weights, lr=0.1)
    assert optimizer.state_dict()["param_groups"][0]["constraint"] is None
    for seed in range(5):
        for _, parameter in weights:
            parameter.grad = direction_like(parameter, seed)
        optimizer.step()
        assert_feasible(model)
    before = model[2].weight.detach().clone()
    optimizer.step()
    lengths = (model[2].weight.detach() - before).norm(dim=-1)
    torch.testing.assert_close(lengths, torch.full_like(lengths, 0.1), rtol=1e-2, atol=0)


# ------------------------------------------------------------------------ `steepest` of all sets

STEEPEST = [name for name in names() if get(name)(**get(name).examples[0][0]).has_steepest()]


def test_which_sets_have_steepest_directions():
    assert {"orthogonal", "sphere", "oblique", "frobenius_norm"} <= set(STEEPEST)
    positive = get("positive")()
    assert positive.steepest(torch.ones(2), torch.ones(2)) is None


@pytest.mark.parametrize("name", STEEPEST)
def test_laws_of_steepest_directions(name):
    cls = get(name)
    for arguments, event in cls.examples:
        constraint = cls(**arguments)
        W = constraint.sample((3, *event), generator=generator(), dtype=torch.float64)
        G = torch.randn(W.shape, generator=generator(1), dtype=torch.float64)
        A = constraint.steepest(W, G)
        assert A.shape == W.shape and A.is_contiguous()
        dims = tuple(range(1, W.ndim))
        # Downhill, tangent, and not changed by a positive factor of the gradient.
        assert ((G * A).sum(dims) <= 0).all()
        for t in (1e-3, 1e-4):
            off = (constraint.project(W + t * A) - (W + t * A)).abs().amax()
            assert off <= 2 * t**2 * W.abs().amax() + 1e-14
        torch.testing.assert_close(constraint.steepest(W, 1e-5 * G), A)
        # No other tangent of the set that is a steepest one for another gradient is as steep.
        other = constraint.steepest(W, torch.randn(W.shape, generator=generator(2)).double())
        assert ((G * A).sum(dims) <= (G * other).sum(dims) + 1e-12).all()
        assert not constraint.steepest(W, torch.zeros_like(W)).any()
        with pytest.raises(ValueError, match="NaN or infinity"):
            constraint.steepest(W, torch.full_like(W, torch.nan))


@pytest.mark.parametrize("name", STEEPEST)
def test_steepest_is_computed_in_single_precision(name):
    constraint = get(name)(**get(name).examples[0][0])
    W = constraint.sample((5, 4), generator=generator()).bfloat16()
    G = torch.randn(5, 4, generator=generator(1)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = constraint.steepest(W, G)
    assert torch.equal(found, constraint.steepest(W.float(), G.float()).bfloat16())
