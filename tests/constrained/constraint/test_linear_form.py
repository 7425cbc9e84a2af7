"""The bounds and linear constraints of a set describe that set."""

import pytest
import torch
from scipy.optimize import linprog

from constrained import get, names
from constrained.constraint.view import View

CASES = [
    (name, dict(kwargs), tuple(shape))
    for name in names()
    for kwargs, shape in get(name).examples
    if get(name)(**kwargs).linear_form(shape) is not None
]


def _missed(form, coordinates):
    """How far coordinates are from what a form demands."""
    low, high = (torch.as_tensor(b, dtype=torch.float64) for b in (form.low, form.high))
    missed = torch.maximum(low - coordinates, coordinates - high).amax(-1)
    if form.matrix is not None:
        sums = coordinates @ form.matrix.mT
        missed = torch.maximum(missed, torch.maximum(form.lower - sums, sums - form.upper).amax(-1))
    return missed.clamp(min=0)


def test_there_are_forms():
    wanted = {"box", "positive", "interval", "at_most", "simplex", "ordered", "l1_ball"}
    wanted |= {"sum_to_zero", "affine", "symmetric", "row_stochastic", "column_stochastic"}
    assert wanted <= {name for name, *_ in CASES}


@pytest.mark.parametrize(("name", "kwargs", "shape"), CASES)
def test_members_have_coordinates_within(name, kwargs, shape):
    constraint = get(name)(**kwargs)
    form = constraint.linear_form(shape)
    members = constraint.sample(
        (20, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    entries = members.reshape(20, -1)
    coordinates = entries if form.image is None else form.image.coordinates(entries)
    assert _missed(form, coordinates).max() < 1e-10
    if form.image is not None:
        assert torch.allclose(form.image(coordinates), entries, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("name", "kwargs", "shape"), CASES)
def test_what_is_within_is_a_member(name, kwargs, shape):
    constraint = get(name)(**kwargs)
    form = constraint.linear_form(shape)
    n = torch.Size(shape).numel()
    if form.image is not None:
        n = form.image.matrix.shape[1]
    low, high = (torch.as_tensor(b, dtype=torch.float64) for b in (form.low, form.high))
    low, high = low.expand(n), high.expand(n)
    # A cube that all of the bounds meet.
    ends = torch.maximum(low, (high - 9).clamp(max=-9)), torch.minimum(high, (low + 9).clamp(min=9))
    sides = {"bounds": torch.stack(ends, 1)}
    if form.matrix is not None:
        rows, right = _at_most(form)
        sides |= {"A_ub": rows, "b_ub": right}
    # Corners of what is within, and of a cube: the farthest points in random directions.
    for seed in range(5):
        direction = torch.randn(n, generator=torch.Generator().manual_seed(seed))
        found = linprog(direction.numpy(), **{k: t.numpy() for k, t in sides.items()})
        assert found.success
        point = torch.from_numpy(found.x)
        entries = point if form.image is None else form.image(point)
        assert constraint.violation(entries.reshape(shape)) < 1e-6


def _at_most(form):
    """The linear constraints as ``rows @ x <= right``."""
    rows, right = torch.cat([form.matrix, -form.matrix]), torch.cat([form.upper, -form.lower])
    return rows[torch.isfinite(right)], right[torch.isfinite(right)]


@pytest.mark.parametrize(("name", "kwargs", "shape"), CASES)
def test_the_rows_are_independent(name, kwargs, shape):
    form = get(name)(**kwargs).linear_form(shape)
    if form.matrix is not None:
        assert torch.linalg.matrix_rank(form.matrix) == len(form.matrix)


def test_a_view_has_the_form_of_each_element():
    constraint = get("simplex")()
    view = View(constraint, "a b c -> c (a b)", (2, 3, 4))
    form = view.linear_form((2, 3, 4))
    value = view.project(torch.randn(2, 3, 4, dtype=torch.float64))
    assert form.matrix.shape == (4, 24) and form.low == 0
    assert torch.allclose(form.matrix @ value.flatten(), torch.ones(4, dtype=torch.float64))
    assert View(get("ordered")(), "a b -> b a", (2, 3)).linear_form((2, 3)) is None
    assert View(get("sphere")(), "a b -> b a", (2, 3)).linear_form((2, 3)) is None
    assert View(get("box")(low=0, high=1), "a b -> b a", (2, 3)).linear_form((2, 3)).high == 1
