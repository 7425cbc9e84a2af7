"""What `minimize` does with a model: before, meanwhile, after, and after errors."""

import copy
import sys

import numpy as np
import pytest
import torch
from torch import nn

import constrained
from constrained import assert_feasible, constrain, minimize, report, spec
from constrained.minimizing.methods import METHODS, find
from constrained.minimizing.objective import Objective
from constrained.minimizing.variables import read_by_the_model, variables

MODES = ("parametrize", "project")


def _normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class Vector(nn.Module):
    def __init__(self, *shape, value=0.3, dtype=torch.float64):
        super().__init__()
        self.weight = nn.Parameter(torch.full(shape, value, dtype=dtype))


def _net(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 1)
    ).to(dtype)


def _fit(net, dtype=torch.float64):
    x, y = _normal(30, 4).to(dtype), _normal(30, 1, seed=1).to(dtype)
    return lambda m: (m(x) - y).square().mean()


@pytest.mark.parametrize("mode", MODES)
def test_a_partly_constrained_model(mode):
    net = _net()
    constrain(net, {"2.weight": "orthogonal", "4.weight": "box(low=-0.5, high=0.5)"}, mode=mode)
    net[0].bias.requires_grad_(False)
    frozen = net[0].bias.detach().clone()
    keys, before = list(net.state_dict()), _fit(net)(net).item()
    result = minimize(net, _fit(net), options={"maxiter": 60})
    assert result.fun < 0.7 * before
    assert abs(_fit(net)(net).item() - result.fun) <= 1e-12 * abs(result.fun)
    assert_feasible(net)
    assert torch.equal(net[0].bias, frozen)
    assert list(net.state_dict()) == keys
    assert all(p.grad is None for p in net.parameters())


def test_tied_tensors_count_once():
    model = nn.Module()
    model.one, model.two = Vector(3), Vector(3)
    model.two.weight = model.one.weight
    constrain(model, "one.weight", "nonnegative")
    wanted = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    result = minimize(model, lambda m: (m.one.weight + m.two.weight - wanted).square().sum())
    assert len(result.x) == 3
    assert torch.equal(model.one.weight, model.two.weight)
    assert torch.allclose(model.two.weight, torch.tensor([0.5, 0.0, 1.5]).double(), atol=1e-7)


@pytest.mark.parametrize("mode", MODES)
def test_a_recurrent_layer(mode):
    torch.manual_seed(0)
    rnn = nn.LSTM(3, 4).double()
    x = _normal(5, 2, 3)
    constrain(rnn, "weight_hh_l0", "orthogonal", view="gates", mode=mode)
    before = rnn(x)[0].square().mean().item()
    result = minimize(rnn, lambda m: m(x)[0].square().mean(), options={"maxiter": 20})
    assert result.fun < 0.5 * before
    assert_feasible(rnn)


def test_a_loss_that_holds_on_to_the_parameter_itself():
    model = constrain(Vector(4), "weight", "sphere", mode="project")
    weight, wanted = model.weight, _normal(4)
    minimize(model, lambda _: -(weight @ wanted), tol=1e-14)
    assert model.weight is weight
    assert torch.allclose(weight, wanted / wanted.norm(), atol=1e-6)


def test_mixed_dtypes_are_kept():
    model = nn.Module()
    dtypes = {"a": torch.float64, "b": torch.float32, "c": torch.bfloat16, "d": torch.complex128}
    for name, dtype in dtypes.items():
        model.register_parameter(name, nn.Parameter(torch.ones(2, dtype=dtype)))
    constrain(model, "b", "interval(0, 3)")

    def loss(m):
        b, c = (t.double() for t in (m.b, m.c))
        return (
            (m.a - 2).square().sum()
            + (b - 0.5).square().sum()
            + ((c - 0.25).square().sum() + (m.d - (1 + 2j)).abs().square().sum())
        )

    result = minimize(model, loss)
    assert result.fun < 1e-4
    assert {name: getattr(model, name).dtype for name in dtypes} == dtypes
    assert torch.allclose(
        model.d.detach(), torch.full((2,), 1 + 2j, dtype=torch.complex128), atol=1e-4
    )


def test_buffers_and_gradients_are_as_before():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).double()
    x = _normal(8, 3)
    net[0].weight.grad = grad = torch.ones_like(net[0].weight)
    buffers = {name: b.clone() for name, b in net.named_buffers()}
    minimize(net, lambda m: (m(x) - 1).square().mean(), options={"maxiter": 5})
    assert all(torch.equal(b, buffers[name]) for name, b in net.named_buffers())
    assert net[0].weight.grad is grad and torch.equal(grad, torch.ones_like(grad))
    assert net[0].bias.grad is None


def test_it_works_without_grad_mode_and_draws_no_random_numbers():
    model = Vector(2)
    state = torch.get_rng_state()
    with torch.no_grad():
        result = minimize(model, lambda m: (m.weight - 1).square().sum())
    assert result.fun < 1e-12
    assert torch.equal(state, torch.get_rng_state())


def test_penalized_tensors_move_freely():
    model = constrain(Vector(3), "weight", "box(low=0, high=1)", mode="penalize")
    wanted = torch.tensor([3.0, 0.5, -1.0], dtype=torch.float64)
    result = minimize(
        model, lambda m: (m.weight - wanted).square().sum() / 2 + constrained.penalty(m, 3.0)
    )
    # The optimum of x -> (x - w)^2 / 2 + 3 / 2 (x - P(x))^2.
    assert torch.allclose(
        model.weight.detach(), torch.tensor([1.5, 0.5, -0.25]).double(), atol=1e-6
    )
    assert result.success


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("constraint", "optimum"),
    [("box(low=-0.1, high=0.1)", 0.1), ("at_most(bound=0.7)", 0.7), ("nonnegative", 3.0)],
)
def test_bounds_are_reached_to_the_bit(constraint, optimum, dtype, mode):
    model = constrain(Vector(4, value=0.05, dtype=dtype), "weight", constraint, mode=mode)
    minimize(model, lambda m: (m.weight - 3).square().sum())
    expected = torch.full((4,), optimum, dtype=dtype)
    assert torch.allclose(model.weight.detach(), expected, rtol=0 if optimum < 1 else 1e-6, atol=0)


def test_an_open_set_is_not_left():
    model = constrain(Vector(3, value=1.0), "weight", "positive")
    result = minimize(model, lambda m: (m.weight + 1).square().sum())
    assert (model.weight > 0).all() and result.fun < 3 + 1e-6


def test_without_bounds_all_goes_through_free_parameters():
    model = constrain(Vector(3), "weight", "interval(0, 1)")
    wanted = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    minimize(model, lambda m: (m.weight - wanted).square().sum(), "BFGS", bounds=None, tol=1e-10)
    assert torch.allclose(model.weight.detach(), wanted, atol=1e-6)


def test_a_view_keeps_its_bounds_and_equations():
    model = constrain(Vector(2, 3, 4), "weight", {"name": "simplex", "view": "a b c -> c (a b)"})
    wanted = _normal(2, 3, 4)
    minimize(model, lambda m: (m.weight - wanted).square().sum(), "SLSQP", tol=1e-12)
    nearest = constrained.get("simplex")().project(wanted.reshape(6, 4).mT).mT.reshape(2, 3, 4)
    assert torch.allclose(model.weight.detach(), nearest, atol=1e-6)


# ------------------------------------------------------------------------------ derivatives


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "constraint", ["sphere", "orthogonal", "positive_definite", "low_rank(rank=2)"]
)
def test_products_with_the_hessian_agree_with_differences(constraint, mode):
    model = nn.Module()
    model.weight = nn.Parameter(_normal(3, 3) / 2 + torch.eye(3).double())
    model.bias = nn.Parameter(_normal(3, seed=2))
    constrain(model, "weight", constraint, mode=mode)
    x = _normal(5, 3, seed=3)

    def loss(m):
        return torch.sin(x @ m.weight + m.bias).square().sum() + (m.bias**4).sum()

    found = variables(model, None)
    objective = Objective(model, loss, found, curvature=True)
    with read_by_the_model(found):
        point = objective.start() + 1e-2 * np.sin(np.arange(len(objective.low)))
        direction = np.cos(np.arange(len(point)))
        step = 1e-5
        slope = (
            objective.value(point + step * direction) - objective.value(point - step * direction)
        ) / (2 * step)
        assert abs(objective.gradient(point) @ direction - slope) < 1e-7 * (1 + abs(slope))
        ahead, behind = (objective.gradient(point + s * step * direction) for s in (1, -1))
        product = objective.product(point, direction)
        difference = (ahead - behind) / (2 * step)
        assert np.abs(product - difference).max() < 1e-7 * (1 + np.abs(difference).max())


def test_the_hessian_of_a_linear_loss_is_zero():
    model = Vector(2)
    objective = Objective(model, lambda m: m.weight.sum(), variables(model, None), curvature=True)
    assert objective.product(objective.start(), np.ones(2)).tolist() == [0, 0]


# --------------------------------------------------------------------------- errors and ends


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_after_an_error_the_best_point_stays(error, mode):
    model = constrain(Vector(5, value=1.0), "weight", "nonnegative", mode=mode)
    wanted, tried = _normal(5), []

    def loss(m):
        if len(tried) == 7:
            raise error("in the loss")
        value = (m.weight - wanted).square().sum() + (m.weight**4).sum()
        tried.append((value.item(), m.weight.detach().clone()))
        return value

    with pytest.raises(error, match="in the loss"):
        minimize(model, loss, tol=1e-14)
    assert torch.equal(model.weight, min(tried, key=lambda pair: pair[0])[1])
    assert_feasible(model)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("constraint", ["sphere", "positive", "simplex"])
def test_after_an_error_at_once_the_model_has_its_bits(constraint, mode):
    model = constrain(Vector(5), "weight", constraint, mode=mode)
    before = {name: t.clone() for name, t in model.state_dict().items()}

    def loss(_):
        raise RuntimeError("at once")

    with pytest.raises(RuntimeError, match="at once"):
        minimize(model, loss)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_a_loss_that_is_not_finite():
    model = Vector(2, value=1.0)
    with pytest.raises(ValueError, match="The loss is nan at the start"):
        minimize(model, lambda m: (m.weight - 2).log().sum())
    with pytest.raises(ValueError, match=r"The loss is nan in evaluation \d+, the best before was"):
        minimize(model, lambda m: m.weight.log().sum() + m.weight.sum() * 3)
    assert torch.isfinite(model.weight).all()
    with pytest.raises(ValueError, match="'weight': the gradient of the loss holds NaN"):
        minimize(Vector(2, value=0.0), lambda m: m.weight.norm() + m.weight.abs().sqrt().sum())


@pytest.mark.parametrize(
    ("loss", "kind", "match"),
    [
        (lambda m: m.weight.sum().detach(), ValueError, "The loss has no graph"),
        (lambda m: m.weight.sum().item(), TypeError, "must be a real scalar tensor, got"),
        (lambda m: m.weight, TypeError, r"got a tensor of shape \(2,\)"),
        (lambda m: m.weight.sum() * 1j, TypeError, "complex128"),
        (lambda m: torch.ones((), requires_grad=True) * 2, ValueError, "does not depend on any"),
        (None, TypeError, "The loss is a function of the model, got None"),
    ],
)
def test_what_is_no_loss(loss, kind, match):
    model = Vector(2)
    with pytest.raises(kind, match=match):
        minimize(model, loss)
    assert torch.equal(model.weight, Vector(2).weight)


def test_a_random_loss():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 20), nn.Dropout(0.5))
    x = torch.ones(4, 20)
    with pytest.raises(ValueError, match=r"at the same parameters.*model\.eval"):
        minimize(net, lambda m: m(x).square().sum())
    minimize(net.eval(), lambda m: m(x).square().sum(), options={"maxiter": 3})


def test_nothing_to_minimize_over():
    with pytest.raises(ValueError, match="Vector has no parameter with requires_grad=True"):
        minimize(Vector(2).requires_grad_(False), lambda m: m.weight.sum())
    with pytest.raises(ValueError, match="nothing to minimize over"):
        minimize(nn.ReLU(), lambda m: torch.ones(()))
    with pytest.raises(ValueError, match="'weight' holds NaN"):
        minimize(Vector(2, value=torch.nan), lambda m: m.weight.sum())
    with pytest.raises(ValueError, match="'weight' has no shape yet"):
        minimize(nn.LazyLinear(2), lambda m: m.weight.sum())
    with pytest.raises(TypeError, match="A model is a torch.nn.Module"):
        minimize(torch.ones(2), lambda m: m.sum())


def test_unknown_and_refused_methods():
    with pytest.raises(ValueError, match=r"Unknown method 'L-BFGS'. Did you mean 'L-BFGS-B'\?"):
        minimize(Vector(2), lambda m: m.weight.sum(), "L-BFGS")
    with pytest.raises(ValueError, match="'trust-exact' takes the whole Hessian.*Choose one of"):
        minimize(Vector(2), lambda m: m.weight.sum(), "trust-exact")
    with pytest.raises(ValueError, match="'Powell' searches along one coordinate to its end"):
        minimize(Vector(2), lambda m: m.weight.sum(), "Powell")
    with pytest.raises(TypeError, match="The method is a name"):
        minimize(Vector(2), lambda m: m.weight.sum(), 3)
    assert find("l-bfgs-b").name == "L-BFGS-B"
    with pytest.raises(ValueError, match="The bounds are 'auto' or None"):
        minimize(Vector(2), lambda m: m.weight.sum(), bounds=[(0, 1)])


def test_every_method_of_scipy_is_known_or_refused():
    from scipy.optimize._minimize import MINIMIZE_METHODS

    for name in MINIMIZE_METHODS:
        try:
            assert find(name).name.lower() == name
        except ValueError as error:
            assert "Unknown method" not in str(error)


def test_without_scipy(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ImportError, match=r"pip install 'constrained-layers\[scipy\]'"):
        minimize(Vector(2), lambda m: m.weight.sum())


@pytest.mark.parametrize("method", METHODS)
def test_the_callback_sees_each_iteration_and_may_end_it(method):
    model, seen = Vector(3), []

    def callback(result):
        seen.append(result.nit)
        assert np.allclose(model.weight.detach().numpy(), result.x, atol=0)
        return len(seen) == 2

    wanted = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)

    def loss(m):
        return ((m.weight - wanted) ** 4).sum() + (m.weight[0] * m.weight[1]).square()

    result = minimize(model, loss, method, callback=callback)
    assert seen == [1, 2] and not result.success and "callback" in result.message
    assert result.nit == 2 and result.fun == loss(model).item()


def test_the_result_is_that_of_scipy():
    from scipy.optimize import OptimizeResult

    model = Vector(3)
    result = minimize(model, lambda m: (m.weight - 1).square().sum(), progress=False)
    assert isinstance(result, OptimizeResult) and result.success
    assert result.x.dtype == np.float64 and np.array_equal(result.x, model.weight.detach().numpy())
    assert np.abs(result.jac).max() < 1e-5 and result.nfev >= result.nit > 0
    assert isinstance(result.message, str)


def test_the_line_is_written_to_a_terminal_only(capsys, monkeypatch):
    model = Vector(3)
    minimize(model, lambda m: (m.weight - 1).square().sum())
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    minimize(model, lambda m: (m.weight - 3).square().sum())
    assert "L-BFGS-B  iteration 1  evaluations" in capsys.readouterr().err


def test_a_copy_afterwards_is_whole():
    model = constrain(Vector(3), "weight", "nonnegative")
    minimize(model, lambda m: (m.weight - 1).square().sum())
    again = copy.deepcopy(model)
    assert spec(again) == spec(model) and torch.equal(again.weight, model.weight)
    assert "weight" in str(report(model))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", ["SLSQP", "COBYLA", "L-BFGS-B"])
@pytest.mark.parametrize("constraint", ["l1_ball", "interval(low=0, high=1)"])
def test_the_loss_of_the_result_is_that_of_the_model(constraint, method, dtype):
    layer = nn.Linear(4, 1, bias=False, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.1, 0.2, 0.3, 0.4]]))
    layer = constrain(layer, "weight", constraint)
    wanted = torch.tensor([[1.0, -0.7, 0.4, 1.3]], dtype=dtype)

    def loss(model):
        return (model.weight - wanted).square().sum()

    result = minimize(layer, loss, method=method, progress=False)
    assert result.fun == loss(layer).item()
