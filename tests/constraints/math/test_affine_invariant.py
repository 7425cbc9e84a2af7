"""The affine-invariant geometry of positive definite matrices."""

import pytest
import torch

from constrained import get
from constraints.math.affine_invariant import cholesky_factor, coordinates, moved, vector_with


def gaussian(*shape, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g, dtype=torch.float64)


def member(n=4, batch=(), seed=0):
    X = gaussian(*batch, n, 3 * n, seed=seed)
    return X @ X.mT / (3 * n)


def symmetric(n=4, batch=(), seed=1):
    V = gaussian(*batch, n, n, seed=seed)
    return V + V.mT


AFFINE = get("positive_definite")(metric="affine_invariant")


def test_inner_product_is_the_trace_of_the_definition():
    W, U, V = member(), symmetric(), symmetric(seed=2)
    expected = torch.trace(torch.linalg.solve(W, U) @ torch.linalg.solve(W, V))
    torch.testing.assert_close(AFFINE.inner(W, U, V), expected.reshape(1, 1))


@pytest.mark.parametrize("batch", [(), (3,)])
def test_everything_is_invariant_under_congruence(batch):
    """With W -> A W A' and V -> A V A' for a lower triangular A, which keeps Cholesky factors."""
    W, U, V = member(batch=batch), symmetric(batch=batch), symmetric(batch=batch, seed=2)
    A = torch.tril(gaussian(4, 4, seed=3))
    A.diagonal().abs_()
    Y = member(batch=batch, seed=5)

    def turned(X):
        return A @ X @ A.mT

    close = torch.testing.assert_close
    close(AFFINE.inner(*map(turned, (W, U, V))), AFFINE.inner(W, U, V))
    close(AFFINE.move(*map(turned, (W, V))), turned(AFFINE.move(W, V)))
    close(AFFINE.transport(*map(turned, (W, V, Y))), turned(AFFINE.transport(W, V, Y)))


def test_transport_is_an_isometry_along_the_curve():
    W, U, V = member(), symmetric(), symmetric(seed=2)
    new = AFFINE.move(W, V)
    there = [AFFINE.transport(W, X, new) for X in (U, V)]
    torch.testing.assert_close(AFFINE.inner(new, *there), AFFINE.inner(W, U, V))
    # The velocity of the curve is what its first one is transported to.
    h = 1e-6
    velocity = (AFFINE.move(W, (1 + h) * V) - AFFINE.move(W, (1 - h) * V)) / (2 * h)
    torch.testing.assert_close(there[1], velocity, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(AFFINE.transport(new, there[0], W), U)


def test_gradient_represents_the_derivative():
    W, V, G = member(), symmetric(), gaussian(4, 4, seed=4)
    gradient = AFFINE.riemannian_gradient(W, G)
    torch.testing.assert_close(AFFINE.inner(W, gradient, V).squeeze(), (G * V).sum())


@pytest.mark.parametrize("length", [1e-8, 1.0, 10.0])
def test_curves_stay_inside(length):
    W = member(6)
    V = symmetric(6)
    V *= length / AFFINE.inner(W, V, V).sqrt()
    for sign in (1, -1):
        new = AFFINE.move(W, sign * V)
        assert AFFINE.contains(new)
        assert torch.equal(new, new.mT)


def test_coordinates_and_back():
    W, V = member(), symmetric()
    L = cholesky_factor(W)
    torch.testing.assert_close(vector_with(L, coordinates(L, V)), V)
    torch.testing.assert_close(moved(L, torch.zeros_like(V)), W)


def test_argument():
    assert repr(AFFINE) == "positive_definite(metric='affine_invariant')"
    assert AFFINE.spec() == {"name": "positive_definite", "metric": "affine_invariant"}
    assert get("positive_definite")().spec() == {"name": "positive_definite"}
    assert not AFFINE.has_boundary() and get("positive_definite")().has_boundary()
    with pytest.raises(ValueError, match="metric must be 'euclidean' or 'affine_invariant'"):
        get("positive_definite")(metric="bures")
