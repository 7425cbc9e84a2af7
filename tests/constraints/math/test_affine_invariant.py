"""The affine-invariant geometry of positive definite matrices."""

import pytest
import torch

from constrained import get
from constraints.math.affine_invariant import gradient_coordinates, moved


def gaussian(*shape, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g, dtype=torch.float64)


def member(n=4, batch=(), seed=0):
    X = gaussian(*batch, n, 3 * n, seed=seed)
    return X @ X.mT / (3 * n)


def vector(W, S):
    """The tangent vector with the coordinates S: ``L S L'``."""
    L = torch.linalg.cholesky(W)
    return L @ S @ L.mT


def symmetric(n=4, batch=(), seed=1):
    V = gaussian(*batch, n, n, seed=seed)
    return V + V.mT


AFFINE = get("positive_definite")(metric="affine_invariant")


def test_coordinates_are_orthonormal_in_the_metric():
    W, S, T = member(), symmetric(), symmetric(seed=2)
    U, V = vector(W, S), vector(W, T)
    expected = torch.trace(torch.linalg.solve(W, U) @ torch.linalg.solve(W, V))
    torch.testing.assert_close((S * T).sum(), expected)


def test_gradient_is_that_of_the_metric():
    W, G = member(), gaussian(4, 4, seed=4)
    expected = W @ (G + G.mT) / 2 @ W
    torch.testing.assert_close(vector(W, AFFINE.riemannian_gradient(W, G)), expected)


@pytest.mark.parametrize("batch", [(), (3,)])
def test_everything_is_invariant_under_congruence(batch):
    """With W -> A W A' and G -> A^-T G A^-1 for a lower triangular A, which keeps the factors."""
    W, S, G = member(batch=batch), symmetric(batch=batch), symmetric(batch=batch, seed=2)
    A = torch.tril(gaussian(4, 4, seed=3))
    A.diagonal().abs_()
    inverse = torch.linalg.inv(A)
    turned = A @ W @ A.mT
    close = torch.testing.assert_close
    close(AFFINE.move(turned, S), A @ AFFINE.move(W, S) @ A.mT)
    close(
        AFFINE.riemannian_gradient(turned, inverse.mT @ G @ inverse),
        AFFINE.riemannian_gradient(W, G),
    )


def test_the_velocity_has_the_same_coordinates_all_along():
    W, S = member(), symmetric()
    h = 1e-6
    for t in (0.0, 1.0):
        velocity = (AFFINE.move(W, (t + h) * S) - AFFINE.move(W, (t - h) * S)) / (2 * h)
        there = AFFINE.move(W, t * S)
        torch.testing.assert_close(velocity, vector(there, S), rtol=1e-7, atol=1e-7)
        assert AFFINE.transport(S, there) is S
    torch.testing.assert_close(AFFINE.move(AFFINE.move(W, S), -S), W)


@pytest.mark.parametrize("length", [1e-8, 1.0, 10.0])
def test_curves_stay_inside(length):
    W, S = member(6), symmetric(6)
    for sign in (1, -1):
        new = AFFINE.move(W, sign * length / S.norm() * S)
        assert AFFINE.contains(new)
        assert torch.equal(new, new.mT)


def test_functions():
    W = member()
    torch.testing.assert_close(moved(W, torch.zeros_like(W)), W)
    torch.testing.assert_close(
        gradient_coordinates(torch.eye(4), symmetric().float()), symmetric().float()
    )


def test_argument():
    assert repr(AFFINE) == "positive_definite(metric='affine_invariant')"
    assert AFFINE.spec() == {"name": "positive_definite", "metric": "affine_invariant"}
    assert get("positive_definite")().spec() == {"name": "positive_definite"}
    assert not AFFINE.has_boundary() and get("positive_definite")().has_boundary()
    with pytest.raises(ValueError, match="metric must be 'euclidean' or 'affine_invariant'"):
        get("positive_definite")(metric="bures")
