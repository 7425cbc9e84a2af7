"""Line search: strong Wolfe conditions on curves of one variable."""

import math

import pytest

from constrained.optim.line_search import Trial, line_search

CURVES = {
    "parabola": (lambda t: (t - 1) ** 2, lambda t: 2 * (t - 1)),
    "far": (lambda t: (t / 1e4 - 1) ** 2, lambda t: 2e-4 * (t / 1e4 - 1)),
    "near": (lambda t: (1e4 * t - 1) ** 2, lambda t: 2e4 * (1e4 * t - 1)),
    "waves": (
        lambda t: math.sin(3 * t) + 0.1 * t * t - 5 * t,
        lambda t: 3 * math.cos(3 * t) + 0.2 * t - 5,
    ),
    "log": (
        lambda t: t - math.log(1 - t) - 5 * t if t < 1 else math.nan,
        lambda t: 1 / (1 - t) - 4 if t < 1 else math.nan,
    ),
    "quartic": (lambda t: (t - 2) ** 4, lambda t: 4 * (t - 2) ** 3),
}


def search(name, length, curvature=0.3, most=100, rounding=0.0):
    function, derivative = CURVES[name]
    tried = []

    def evaluate(t):
        tried.append(t)
        return Trial(t, function(t), derivative(t))

    start = Trial(0.0, function(0.0), derivative(0.0))
    assert start.slope < 0
    found = line_search(
        evaluate, start, length, curvature=curvature, rounding=rounding, max_evaluations=most
    )
    return start, found, tried


@pytest.mark.parametrize("length", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("curvature", [0.1, 0.9])
def test_wolfe_conditions(name, length, curvature):
    start, found, tried = search(name, length, curvature)
    assert found.loss <= start.loss + 1e-4 * found.length * start.slope
    assert abs(found.slope) <= -curvature * start.slope
    assert len(tried) <= 20 and found.length in tried


def test_a_good_length_is_taken_at_once():
    _, found, tried = search("parabola", 1.1)
    assert tried == [1.1] and found.length == 1.1


def test_nothing_is_found_where_the_function_rises_in_truth():
    start = Trial(0.0, 0.0, -1.0)
    found = line_search(
        lambda t: Trial(t, t, -1.0), start, 1.0, curvature=0.3, rounding=0.0, max_evaluations=50
    )
    assert found is None


def test_the_lowest_is_returned_when_trials_run_out():
    _, found, tried = search("far", 1.0, curvature=0.1, most=2)
    assert len(tried) == 2 and found.length == tried[-1]
    assert search("near", 1.0, most=1)[1] is None


def test_within_rounding_the_derivative_decides():
    def evaluate(t):
        # The change of the loss is lost beside 1.
        return Trial(t, 1 + 1e-16, -2 * (1 - t))

    start = Trial(0.0, 1.0, -2.0)
    settings = {"curvature": 0.1, "max_evaluations": 20}
    found = line_search(evaluate, start, 0.3, rounding=1e-15, **settings)
    assert abs(found.length - 1) <= 0.1
