"""The nearest correlation matrix: published distances, the optimality conditions, derivatives."""

import pytest
import torch

from constrained import get
from constraints.math.nearest_correlation import (
    _derivative,
    _hessian,
    _ratios,
    nearest_correlation,
)


def tridiagonal(n):
    ones = torch.ones(n - 1, dtype=torch.float64)
    return 2 * torch.eye(n, dtype=torch.float64) - torch.diag(ones, 1) - torch.diag(ones, -1)


HIGHAM = torch.tensor([[1, 1, 0], [1, 1, 1], [0, 1, 1]], dtype=torch.float64)


@pytest.mark.parametrize(("matrix", "distance"), [(HIGHAM, 0.527790), (tridiagonal(4), 2.133729)])
def test_distances_of_the_literature(matrix, distance):
    assert float((nearest_correlation(matrix) - matrix).norm()) == pytest.approx(distance, abs=1e-6)


@pytest.mark.parametrize("n", [1, 2, 5, 30])
def test_optimality(n):
    """X is the nearest if X - A + diag(y) is a semidefinite Z with tr(X Z) = 0 for some y."""
    A = torch.randn(3, n, n, dtype=torch.float64)
    A = (A + A.mT) / 2
    X = nearest_correlation(A)
    assert (X.diagonal(dim1=-2, dim2=-1) - 1).abs().max() < 1e-12
    assert torch.linalg.eigvalsh(X).min() > -1e-12
    # X Z = 0 holds row by row, and its diagonal gives y.
    G = X - A
    y = -(G * X).sum(-1)
    Z = G + torch.diag_embed(y)
    assert (Z @ X).abs().max() < 1e-9
    assert torch.linalg.eigvalsh(Z).min() > -1e-9


def test_derivative():
    A = torch.randn(2, 5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(nearest_correlation, (A,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_step_is_brought_back_into_the_set(dtype):
    constraint = get("correlation")()
    inside = constraint.sample((4, 4), dtype=dtype)
    moved = constraint.retract(inside + torch.randn(4, 4, dtype=torch.float64).to(dtype))
    assert moved.dtype == dtype
    assert constraint.contains(moved).all()
    assert torch.allclose(constraint.retract(moved), moved, atol=4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("shift", [-3.0, 0.0, 3.0])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_products_with_the_hessian_are_those_with_all_eigenvectors(n, shift):
    g = torch.Generator().manual_seed(n)
    S = torch.randn(4, n, n, generator=g, dtype=torch.float64)
    eigenvalues, Q = torch.linalg.eigh(S + S.mT + shift * torch.eye(n))
    ratios = _ratios(eigenvalues)
    h = torch.randn(4, n, generator=g, dtype=torch.float64)
    full = _derivative(Q, ratios, torch.diag_embed(h))
    found = _hessian(Q, ratios)(h)
    torch.testing.assert_close(found, full.diagonal(dim1=-2, dim2=-1))
