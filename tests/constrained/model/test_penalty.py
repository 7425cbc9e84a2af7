"""Penalties and Lagrangians of tensors with ``mode="penalize"``."""

import pytest
import torch
from torch import nn

from constrained import Lagrangian, SpecError, constrain, penalty, spec, violations


def layer(values, constraint, **arguments):
    made = nn.Linear(len(values), 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        made.weight.copy_(torch.tensor([values]))
    return constrain(made, "weight", constraint, mode="penalize", **arguments)


class TestPenalty:
    def test_is_half_of_the_squared_distance(self):
        model = layer([3.0, 4.0], "ball(radius=1.0)")
        assert model.weight.tolist() == [[3.0, 4.0]]
        found = penalty(model)
        # The norm is 5, and the ball ends at 1.
        assert found.item() == pytest.approx(8.0)
        found.backward()
        torch.testing.assert_close(model.weight.grad, model.weight.detach() * 0.8)

    def test_vanishes_inside(self):
        model = layer([0.3, 0.4], "ball(radius=1.0)")
        found = penalty(model)
        found.backward()
        assert found.item() == 0
        assert model.weight.grad.abs().max() == 0

    def test_weights_by_pattern(self):
        model = nn.ModuleDict({"a": layer([2.0], "box(low=0, high=1)"), "b": nn.Linear(1, 1)})
        constrain(model, "b.weight", "box(low=0, high=1)", mode="penalize")
        with torch.no_grad():
            model["b"].weight.fill_(3.0)
        assert penalty(model).item() == pytest.approx(0.5 + 2)
        assert penalty(model, 2.0).item() == pytest.approx(1 + 4)
        assert penalty(model, {"**.weight": 0.0, "b.weight": 3.0}).item() == pytest.approx(6)

    def test_the_optimizer_leaves_the_tensor_where_it_is(self):
        model = layer([3.0, 4.0], "ball(radius=1.0)")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model.weight.grad = torch.ones_like(model.weight)
        optimizer.step()
        torch.testing.assert_close(model.weight.detach(), torch.tensor([[2.9, 3.9]]).double())
        assert violations(model)["weight"] > 1
        assert spec(model) == {"weight": {"name": "ball", "mode": "penalize"}}

    @pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf"), "1", True])
    def test_refuses_a_weight_that_is_none(self, weight):
        with pytest.raises(SpecError, match="A weight is a finite number"):
            penalty(layer([3.0], "box(low=0, high=1)"), weight)

    def test_refuses_a_pattern_for_nothing(self):
        model = nn.ModuleDict({"a": layer([2.0], "box(low=0, high=1)"), "b": nn.Linear(1, 1)})
        with pytest.raises(SpecError, match=r"'b\.weight' matches no tensor with mode='penalize'"):
            penalty(model, {"b.weight": 1.0})

    def test_names_a_tensor_that_is_not_finite(self):
        model = layer([3.0], "box(low=0, high=1)")
        with torch.no_grad():
            model.weight.fill_(float("nan"))
        with pytest.raises(ValueError, match="'weight': .*NaN"):
            penalty(model)

    def test_of_a_model_without_any_is_zero(self):
        assert penalty(nn.Linear(2, 2)).item() == 0


def minimize(model, lagrangian, loss, rounds):
    for _ in range(rounds):
        optimizer = torch.optim.LBFGS(
            model.parameters(),
            line_search_fn="strong_wolfe",
            max_iter=50,
            tolerance_grad=1e-12,
            tolerance_change=0,
        )

        def closure(optimizer=optimizer):
            optimizer.zero_grad()
            total = lagrangian(loss())
            total.backward()
            return total

        optimizer.step(closure)
        lagrangian.update()


class TestLagrangian:
    def test_reaches_the_optimum_with_a_moderate_weight(self):
        # The nearest point to (2, 1) with nonnegative entries and sum 1 is (1, 0).
        model = layer([0.5, 0.5], "simplex")
        target = torch.tensor([[2.0, 1.0]]).double()
        lagrangian = Lagrangian(model, weight=5.0)
        minimize(model, lagrangian, lambda: (model.weight - target).square().sum(), 60)
        expected = torch.tensor([[1.0, 0.0]]).double()
        torch.testing.assert_close(model.weight.detach(), expected, atol=1e-6, rtol=0)
        assert max(lagrangian.violations().values()) < 1e-6
        # The multiplier is the negative gradient of the loss at the optimum.
        found = lagrangian.multipliers()["weight"]
        torch.testing.assert_close(found, -2 * (expected - target), atol=1e-4, rtol=0)

    def test_of_functions(self):
        # min x^2 + y^2 with x + y >= 2: at (1, 1), with the multiplier 2.
        model = nn.Linear(2, 1, bias=False, dtype=torch.float64)
        lagrangian = Lagrangian(model, {"sum": lambda m: 2 - m.weight.sum()}, weight=3.0)
        minimize(model, lagrangian, lambda: model.weight.square().sum(), 40)
        torch.testing.assert_close(
            model.weight.detach(), torch.ones(1, 2).double(), atol=1e-6, rtol=0
        )
        assert lagrangian.multipliers()["sum"].item() == pytest.approx(2, abs=1e-5)

    def test_damping_leaves_a_violation(self):
        rest = []
        for damping in (0.0, 0.1):
            model = layer([0.5, 0.5], "simplex")
            target = torch.tensor([[2.0, 1.0]]).double()
            lagrangian = Lagrangian(model, weight=5.0, damping=damping)
            minimize(model, lagrangian, lambda m=model, t=target: (m.weight - t).square().sum(), 40)
            rest.append(lagrangian.violations()["weight"])
        assert rest[0] < 1e-6 < 1e-3 < rest[1]

    def test_its_state_goes_on(self):
        model = layer([3.0, 0.0], "simplex")
        lagrangian = Lagrangian(model)
        lagrangian.update()
        other = Lagrangian(model)
        other.load_state_dict(lagrangian.state_dict())
        assert torch.equal(other.multipliers()["weight"], lagrangian.multipliers()["weight"])
        assert lagrangian.multipliers()["weight"].abs().max() > 0
        assert not list(lagrangian.parameters())

    def test_errors(self):
        with pytest.raises(SpecError, match="has no tensor with mode='penalize'"):
            Lagrangian(nn.Linear(2, 2))
        with pytest.raises(SpecError, match="weight of a Lagrangian is positive"):
            Lagrangian(layer([1.0], "simplex"), weight=0.0)
        with pytest.raises(SpecError, match="damping is at least 0"):
            Lagrangian(layer([1.0], "simplex"), damping=1.0)
        with pytest.raises(TypeError, match="The function 'f' gives"):
            Lagrangian(nn.Linear(2, 2), {"f": lambda _: 3})
        with pytest.raises(ValueError, match="The function 'f' gives NaN"):
            Lagrangian(nn.Linear(2, 2), {"f": lambda m: m.weight.sum() * float("nan")})
