"""`slack`: how far members are from the boundary of their set."""

import math

import pytest
import torch

from constrained import constrain, get, names
from constrained.constraint.tolerance import tolerance
from constrained.testing.case import Case
from constrained.testing.points import members, outsiders

CASES = [
    Case(cls, kwargs, event, (2,) if cls(**kwargs).event_dim is not None else (), torch.float64)
    for cls in map(get, names())
    for kwargs, event in cls.examples
]

WITHOUT = (
    *("affine", "angle", "banded", "block_diagonal", "circulant", "diagonal", "frobenius_norm"),
    *("grassmann", "hamiltonian", "hankel", "hermitian", "lorentz", "low_rank", "lower_triangular"),
    *("masked", "oblique", "orthogonal", "orthogonal_conv", "psd_low_rank", "rank_one", "real"),
    *("skew", "special_linear", "special_orthogonal", "sphere", "sum_to_zero", "symmetric"),
    *("symplectic", "toeplitz", "traceless", "unitary", "upper_triangular", "weight_norm"),
)


def slack_of(constraint, value):
    found = constraint.slack(value)
    if found is None:
        return None
    assert not found.is_complex() and not found.isnan().any()
    return found


def test_which_sets_have_a_boundary():
    found = {
        name
        for name in names()
        for kwargs, event in get(name).examples
        if get(name)(**kwargs).slack(get(name)(**kwargs).sample(event)) is not None
    }
    assert set(names()) - found == set(WITHOUT)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_is_not_negative_inside_and_zero_at_projections(case):
    constraint = case.build()
    for name, value in members(case, constraint):
        slack = slack_of(constraint, value)
        if slack is None:
            return
        assert slack.shape == case.batch, name
        allowed = 16 * tolerance(value, case.event_dim)
        assert (slack >= -allowed).all(), name
    full = constraint.dimension(case.event) == math.prod(case.event)
    if not constraint.closed or not full or case.cls.name in ("hurwitz", "schur"):
        return
    for name, value in outsiders(case, constraint):
        nearby = constraint.project(value)
        allowed = 64 * tolerance(nearby, case.event_dim) + 1e-12
        assert (slack_of(constraint, nearby).abs() <= allowed).all(), name


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_step_shorter_than_the_slack_stays_inside(case):
    constraint = case.build()
    value = case.sample(constraint)
    slack = slack_of(constraint, value)
    full = constraint.dimension(case.event) == math.prod(case.event)
    # Eigenvalues of other matrices may move by much more than the entries.
    if slack is None or not full or case.cls.name in ("hurwitz", "schur", "chain", "product"):
        return
    step = case.gaussian(salt="step")
    size = step.flatten(len(case.batch)).norm(dim=-1) if case.event else step.abs()
    # The norms of vectors whose p is not 2, and of kernels, grow faster than their entries.
    share = 0.9 / (math.prod(case.event) ** 0.5 if case.cls.name in FASTER else 1)
    reach = share * slack.clamp(max=1) / size
    moved = value + reach.reshape(*case.batch, *[1] * case.event_dim) * step
    assert constraint.contains(moved).all()


FASTER = {"ball", "l1_ball", "spectral_norm_conv", "ordered", "positive_ordered"}


@pytest.mark.parametrize(
    "spec, value, expected",
    [
        ("positive", [0.5, 2.0], [0.5, 2.0]),
        ("at_most(bound=3)", [1.0, 3.0], [2.0, 0.0]),
        ("interval(-1, 1)", [0.75, -0.9], [0.25, 0.1]),
        ("simplex", [0.2, 0.8], 0.2),
        ("ball(radius=2)", [0.6, 0.8], 1.0),
        ("min_max_norm(low=0.5, high=2)", [0.6, 0.8], 0.5),
        ("ordered(gap=0.5)", [0.0, 1.0, 1.75], 0.25),
        ("ordered", [1.0], math.inf),
        ("spectral_norm(bound=3)", [[2.0, 0.0], [0.0, 1.0]], 1.0),
        ("singular_values(low=0.5, high=3)", [[2.0, 0.0], [0.0, 0.75]], 0.25),
        ("positive_definite", [[2.0, 0.0], [0.0, 0.5]], 0.5),
        ("invertible", [[2.0, 0.0], [0.0, -0.5]], 0.5),
        ("fixed_rank(rank=1)", [[2.0, 0.0], [0.0, 0.0]], 2.0),
        ("hurwitz(alpha=0.5)", [[-2.0, 0.0], [7.0, -1.0]], 0.5),
        ("schur(radius=0.9)", [[0.5, 0.0], [7.0, -0.25]], 0.4),
        ("symmetric | spectral_norm(bound=10)", [[3.0, 4.0], [4.0, 3.0]], 3.0),
        ({"name": "product", "parts": ["box(0, 1)", "sphere"], "dim": -1}, [0.2, 1.0], 0.2),
    ],
    ids=str,
)
def test_its_value(spec, value, expected):
    value = torch.tensor(value)
    from constrained.constraint.spec import parse

    found = parse(spec).build().slack(value)
    torch.testing.assert_close(found, torch.tensor(expected))


def test_an_element_that_is_not_finite():
    value = torch.tensor([[0.2, 0.8], [float("nan"), 1.0], [float("inf"), 0.0]])
    assert get("simplex")().slack(value)[0] == 0.2
    assert get("simplex")().slack(value)[1:].isnan().all()
    assert get("positive_definite")().slack(torch.full((2, 2), float("nan"))).isnan()


def test_a_view_has_the_least_slack_of_what_is_seen():
    layer = torch.nn.Conv2d(2, 3, 2)
    with torch.no_grad():
        layer.weight.mul_(0.1)
    view = "o i h w -> o (i h w)"
    constrain(layer, "weight", "ball(radius=1)", view=view)
    (constraint,) = layer.parametrizations.weight
    lengths = layer.weight.detach().flatten(1).norm(dim=1)
    torch.testing.assert_close(constraint.slack(layer.weight.detach()), 1 - lengths.max())


def test_half_precision():
    found = get("ball")(radius=1.0).slack(torch.tensor([0.5, 0.0], dtype=torch.bfloat16))
    assert found.dtype is torch.float32 and found == 0.5


def test_a_wrong_shape_is_told():
    class Wrong(get("ball")):
        def slack(self, value):
            return value

    with pytest.raises(ValueError, match=r"`slack` must give one number for each element"):
        Wrong().slack(torch.zeros(2, 3))
