"""Tangent parts and polar factors in place are those of `constraints.math.polar`."""

import pytest
import torch

from constraints import Orthogonal
from constraints.math.polar import polar_factor, polar_gradient
from constraints.math.polar_in_place import make_tangent_, orthogonalize_

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
SHAPES = pytest.mark.parametrize(
    "shape", [(1, 1), (6, 6), (50, 3), (3, 50), (4, 5, 5), (2, 3, 7, 4), (70, 4, 64), (600, 520)]
)


def numbers(shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def member(shape, dtype):
    return polar_factor(numbers(shape, dtype)).contiguous()


def close(found, expected, dtype):
    tolerance = 100 * torch.finfo(dtype).eps * max(found.shape[-2:]) ** 0.5
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


@DTYPES
@SHAPES
def test_tangent(shape, dtype):
    W, G = member(shape, dtype), numbers(shape, dtype, seed=1)
    expected = polar_gradient(W, W, G)
    assert make_tangent_(W, G)
    close(G, expected, dtype)


@DTYPES
@SHAPES
@pytest.mark.parametrize("size", [1e-4, 1e-2, 0.5])
def test_polar_factor(shape, dtype, size):
    W = member(shape, dtype)
    X = W + size * numbers(shape, dtype, seed=1) / max(shape[-2:]) ** 0.5
    expected = polar_factor(X)
    orthogonalize_(X)
    close(X, expected, dtype)
    assert Orthogonal().contains(X).all()


@DTYPES
@SHAPES
def test_an_orthogonal_matrix_stays_bit_for_bit(shape, dtype):
    W = member(shape, dtype)
    orthogonalize_(W)
    before = W.clone()
    orthogonalize_(W)
    assert torch.equal(W, before)


def test_an_orthogonal_element_stays_whatever_else_the_batch_contains():
    W = torch.eye(5).repeat(3, 1, 1)
    W[1] += 1e-3
    orthogonalize_(W)
    assert torch.equal(W[0], torch.eye(5)) and torch.equal(W[2], torch.eye(5))
    assert Orthogonal().contains(W).all()


@pytest.mark.parametrize("shape", [(6, 6), (3, 7), (4, 5, 5)])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_is_left_as_it_was(shape, bad):
    W, G = member(shape, torch.float32), numbers(shape)
    G.view(-1)[-1] = bad
    before = G.clone()
    assert not make_tangent_(W, G)
    torch.testing.assert_close(G, before, rtol=0, atol=0, equal_nan=True)


def test_an_empty_batch_stays_one():
    W = torch.empty(0, 3, 3)
    orthogonalize_(W)
    assert make_tangent_(W, W.clone()) and W.shape == (0, 3, 3)
