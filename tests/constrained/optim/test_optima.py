"""Riemannian optimizers on problems whose least loss is known: they reach it, within the set."""

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from constrained import assert_feasible, get
from constrained.optim import RiemannianAdam, RiemannianCG, RiemannianLBFGS, RiemannianSGD
from tests.constrained.optim import problems
from tests.constrained.optim.problems import SMOOTH, gaussian, least_squares


def closure_of(problem, optimizer, losses):
    def closure():
        optimizer.zero_grad()
        loss = problem.loss(problem.model)
        loss.backward()
        losses.append(loss.item())
        return loss

    return closure


@pytest.mark.parametrize("cls", [RiemannianCG, RiemannianLBFGS])
@pytest.mark.parametrize("make", SMOOTH, ids=lambda f: f.__name__)
def test_line_search_reaches_ten_digits(make, cls):
    problem, losses = make(), []
    optimizer = cls(problem.model.parameters(), max_iter=10, tolerance_grad=0)
    closure = closure_of(problem, optimizer, losses)
    before = problem.gap()
    for _ in range(40):
        optimizer.step(closure)
        assert_feasible(problem.model)
        gap = problem.gap()
        # No step ends higher than it began, up to the rounding of the loss.
        assert gap <= before + 1e-13
        before = gap
        if gap <= 1e-11:
            break
    assert abs(gap) <= 1e-10
    assert len(losses) < 300


def decaying(optimizer, steps):
    """The learning rate stays for half of the steps, and then falls by seven orders."""
    return LambdaLR(optimizer, lambda k: min(1.0, 10 ** (7 * (1 - 2 * k / steps))))


FIRST_ORDER = {
    "SGD": (RiemannianSGD, {"lr": 0.03, "momentum": 0.9}),
    "Nesterov": (RiemannianSGD, {"lr": 0.03, "momentum": 0.9, "nesterov": True}),
    "Adam": (RiemannianAdam, {"lr": 0.1, "betas": (0.9, 0.99)}),
    "AMSGrad": (RiemannianAdam, {"lr": 0.1, "betas": (0.9, 0.99), "amsgrad": True}),
    "entry": (
        RiemannianAdam,
        {"lr": 0.03, "betas": (0.9, 0.99), "second_moment": "entry"},
    ),
}

#: Those that are tried with every method. Rosenbrock's valley is too long for all of them.
ALL_METHODS = [problems.eigenvector, problems.procrustes, problems.regression]
SGD_AND_ADAM = [p for p in SMOOTH if p not in (*ALL_METHODS, problems.rosenbrock)]


def trained(problem, kind, steps):
    cls, settings = FIRST_ORDER[kind]
    optimizer = cls(problem.model.parameters(), **settings)
    schedule = decaying(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        problem.loss(problem.model).backward()
        optimizer.step()
        schedule.step()
        assert_feasible(problem.model)


@pytest.mark.parametrize("kind", FIRST_ORDER)
@pytest.mark.parametrize("make", ALL_METHODS, ids=lambda f: f.__name__)
def test_first_order_methods_reach_six_digits(make, kind):
    problem = make()
    trained(problem, kind, 500)
    assert abs(problem.gap()) <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["SGD", "Adam"])
@pytest.mark.parametrize("make", SGD_AND_ADAM, ids=lambda f: f.__name__)
def test_first_order_methods_reach_six_digits_on_all_sets(make, kind):
    problem = make()
    trained(problem, kind, 600)
    assert abs(problem.gap()) <= 1e-6


BOUNDARY = {
    "nonnegative": ("nonnegative", gaussian(8)),
    "simplex": ("simplex", gaussian(8)),
    "ball": ("ball", 2 * gaussian(6)),
    "l1_ball": ("l1_ball", gaussian(6)),
}


@pytest.mark.parametrize("kind", ["SGD", "Adam", "entry"])
@pytest.mark.parametrize("name", BOUNDARY)
@pytest.mark.slow
def test_sets_with_a_boundary_are_walked_with_projections(name, kind):
    spec, target = BOUNDARY[name]
    problem = least_squares(spec, tuple(target.shape), target)
    trained(problem, kind, 600)
    assert abs(problem.gap()) <= 1e-6


@pytest.mark.parametrize("cls", [RiemannianCG, RiemannianLBFGS])
def test_line_searches_refuse_a_boundary(cls):
    problem = least_squares("simplex", (5,), gaussian(5))
    with pytest.raises(
        ValueError, match=rf"'W': simplex\(.*\) has a boundary, which {cls.__name__}"
    ):
        cls(problem.model.named_parameters())
    spd = torch.nn.Parameter(torch.eye(3))
    with pytest.raises(ValueError, match="has a boundary"):
        cls([spd], constraint="positive_definite")
    cls([spd], constraint={"name": "positive_definite", "metric": "affine_invariant"})


def test_no_projection_in_the_metric_of_entries():
    weight = torch.nn.Parameter(get("spectral_norm")().sample((4, 3)))
    with pytest.raises(ValueError, match="take second_moment='element'"):
        RiemannianAdam([weight], second_moment="entry", constraint="spectral_norm")
    RiemannianAdam([weight], constraint="spectral_norm")
