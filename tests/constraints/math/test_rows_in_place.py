"""Vectors changed in place: as by the formulas, or not at all."""

import pytest
import torch

from constraints import MaxNorm, Simplex, Sphere
from constraints.math.rows_in_place import make_tangent_, normalize_, onto_simplex_, shorten_

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
#: The last has several blocks of rows, and one that is not full.
SHAPES = pytest.mark.parametrize("shape", [(1,), (5,), (3, 1), (2, 3, 7), (4, 40_000), (300, 700)])


def numbers(shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def close(found, expected, dtype):
    tolerance = 200 * torch.finfo(dtype).eps
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


@DTYPES
@SHAPES
def test_normalize(shape, dtype):
    x = numbers(shape, dtype)
    expected = Sphere(radius=2.0).project(x)
    assert normalize_(x, 2.0)
    close(x, expected, dtype)
    before = x.clone()
    assert normalize_(x, 2.0) and torch.equal(x, before)


@DTYPES
@SHAPES
@pytest.mark.parametrize("bound", [0.3, 30.0])
def test_shorten(shape, dtype, bound):
    x = numbers(shape, dtype)
    before, expected = x.clone(), MaxNorm(bound=bound).project(x)
    assert shorten_(x, bound)
    close(x, expected, dtype)
    inside = before.norm(dim=-1) < bound
    assert torch.equal(x[inside], before[inside])


@DTYPES
@SHAPES
@pytest.mark.parametrize("size", [1e-3, 0.02, 3.0])
def test_simplex(shape, dtype, size):
    x = size * numbers(shape, dtype) / shape[-1] ** 0.5 + 1 / shape[-1]
    expected = Simplex().project(x)
    # What is too large is left to the formula that sorts.
    assert onto_simplex_(x) or size > 1
    close(Simplex().project(x), expected, dtype)
    assert (x >= 0).all() or size > 1


def test_simplex_with_many_entries_that_leave_in_turn():
    """Entries of many sizes, of which each round of Newton's method removes some."""
    x = torch.logspace(0, -6, 5000).repeat(3, 1) * torch.tensor([[0.005], [0.01], [0.015]])
    expected = Simplex().project(x.double())
    assert onto_simplex_(x)
    close(x, expected.float(), torch.float32)
    close(x.double().sum(-1), torch.ones(3, dtype=torch.float64), torch.float32)


@DTYPES
@SHAPES
def test_tangent(shape, dtype):
    sphere = Sphere(radius=2.0)
    x, g = sphere.project(numbers(shape, dtype)), numbers(shape, dtype, seed=1)
    expected = sphere.tangent(x, g)
    assert make_tangent_(x, g, 2.0)
    close(g, expected, dtype)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("at", [0, -1])
def test_what_is_not_finite_is_refused(bad, at):
    x, g = Sphere().project(numbers((300, 700))), numbers((300, 700), seed=1)
    g.view(-1)[at] = bad
    before = g.clone()
    assert not make_tangent_(x, g, 1.0)
    torch.testing.assert_close(g, before, rtol=0, atol=0, equal_nan=True)
    for change in (lambda v: normalize_(v, 1.0), lambda v: shorten_(v, 1.0), onto_simplex_):
        assert not change(g.clone())


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_squares_that_lose_digits_are_refused(size):
    x = size * numbers((3, 5))
    before = x.clone()
    assert not normalize_(x, 1.0) and torch.equal(x, before)
    bound = size / 10
    assert not shorten_(x, bound) and torch.equal(x, before)
    # The constraints then take the formulas that scale first.
    Sphere().retract_(x)
    assert (Sphere().violation(x) < 1e-6).all()
