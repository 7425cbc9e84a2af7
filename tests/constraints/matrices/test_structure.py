"""Structured matrices and Cholesky factors: projections, scipy's members, optima."""

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import distributions

import constrained
from constraints import (
    Banded,
    BlockDiagonal,
    CholeskyFactor,
    Circulant,
    Diagonal,
    Hamiltonian,
    Hankel,
    Hermitian,
    LowerTriangular,
    Toeplitz,
    Traceless,
    UpperTriangular,
)

SQUARE = [
    Banded(width=2),
    BlockDiagonal(sizes=[2, 4]),
    Circulant(),
    Diagonal(),
    Hamiltonian(),
    Hankel(),
    Hermitian(),
    LowerTriangular(),
    Toeplitz(),
    Traceless(),
    UpperTriangular(),
]


def inner(A, B):
    return float((A * B).sum())


@pytest.mark.parametrize("constraint", SQUARE, ids=str)
def test_the_projection_is_orthogonal(constraint):
    X, Y = torch.randn(2, 6, 6, dtype=torch.float64)
    assert abs(inner(X - constraint.project(X), constraint(Y))) < 1e-12


@pytest.mark.parametrize("constraint", SQUARE, ids=str)
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-6, 1.0, 1e6, 1e30])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_members_of_any_size_come_back(constraint, scale, dtype):
    if scale > torch.finfo(dtype).max:
        return
    W = constraint((scale * torch.randn(3, 6, 6, dtype=torch.float64)).to(dtype))
    assert W.isfinite().all() and constraint.contains(W).all()
    if not isinstance(constraint, (Traceless, Hamiltonian)):
        # Means of equal numbers, halves of equal numbers and zeros are exact.
        assert torch.equal(constraint(constraint.right_inverse(W)), W)


@pytest.mark.parametrize("constraint", SQUARE, ids=str)
def test_large_matrices_and_empty_batches(constraint):
    n = 6 if isinstance(constraint, BlockDiagonal) else 512
    W = constraint(torch.randn(n, n))
    assert constraint.contains(W)
    empty = torch.zeros(0, n, n)
    assert constraint(empty).shape == constraint.project(empty).shape == (0, n, n)
    assert constraint.violation(empty).shape == (0,)
    assert constraint.right_inverse(empty).shape == (0, n, n)


@pytest.mark.parametrize("constraint", SQUARE, ids=str)
def test_adam_reaches_the_nearest_member(constraint):
    X = torch.randn(6, 6, dtype=torch.float64)
    starts = {
        "random": torch.randn(6, 6, dtype=torch.float64),
        "zeros": torch.zeros_like(X),
        "eye": torch.eye(6, dtype=torch.float64),
        "ones": torch.ones_like(X),
        "large": 5 * torch.randn(6, 6, dtype=torch.float64),
    }
    # One element of a batch knows nothing of the others, nor does Adam.
    first = constraint.project(torch.stack([*starts.values()]))
    free = constraint.right_inverse(first).clone().requires_grad_()
    optimizer = torch.optim.Adam([free], lr=0.3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)
    for _ in range(400):
        optimizer.zero_grad()
        (constraint(free) - X).square().sum().backward()
        optimizer.step()
        schedule.step()
    nearest = constraint.project(X)
    apart = torch.linalg.matrix_norm(constraint(free).detach() - nearest)
    assert not [k for k, a in zip(starts, apart, strict=True) if a >= 1e-3 * nearest.norm()]


def random(*shape):
    return np.random.default_rng(0).standard_normal(shape)


@pytest.mark.parametrize(
    ("constraint", "member"),
    [
        (Toeplitz(), scipy.linalg.toeplitz(random(4), random(6))),
        (Hankel(), scipy.linalg.hankel(random(4), random(6))),
        (Circulant(), scipy.linalg.circulant(random(5))),
        (BlockDiagonal(sizes=[1, 3]), scipy.linalg.block_diag(random(1, 1), random(3, 3))),
        (Diagonal(), np.diag(random(5))),
        (LowerTriangular(), scipy.linalg.lu(random(5, 5))[1]),
        (UpperTriangular(), scipy.linalg.qr(random(5, 3))[1]),
        (Banded(width=1), scipy.linalg.hessenberg(random(5, 5) + random(5, 5).T)),
        # A commutator has the trace zero.
        (Traceless(), random(4, 4) @ random(4, 4).T[::-1] - random(4, 4).T[::-1] @ random(4, 4)),
    ],
    ids=lambda x: str(x) if isinstance(x, constrained.Constraint) else "",
)
def test_members_of_scipy(constraint, member):
    member = torch.tensor(member)
    if isinstance(constraint, Banded):
        # The Hessenberg form of a symmetric matrix is tridiagonal up to rounding.
        member = (member + member.T) / 2
        member = torch.where(member.abs() < 1e-12, 0, member)
    assert constraint.contains(member)
    assert not constraint.contains(member + torch.randn(member.shape, dtype=member.dtype))


def test_the_exponential_of_a_hamiltonian_matrix_is_symplectic():
    W = Hamiltonian()(torch.randn(6, 6, dtype=torch.float64))
    S = torch.linalg.matrix_exp(W)
    identity = torch.eye(3, dtype=torch.float64)
    zero = torch.zeros_like(identity)
    J = torch.cat((torch.cat((zero, identity), 1), torch.cat((-identity, zero), 1)))
    assert torch.allclose(S.T @ J @ S, J, atol=1e-9)
    assert torch.allclose(J @ W, (J @ W).T)


def test_a_circulant_matrix_is_diagonal_in_the_fourier_basis():
    W = Circulant()(torch.randn(5, 5, dtype=torch.float64))
    F = torch.fft.fft(torch.eye(5, dtype=torch.complex128))
    D = F @ W.to(F.dtype) @ F.inverse()
    assert torch.allclose(D, torch.diag(D.diagonal()), atol=1e-12)


def test_the_determinant_of_the_exponential_of_a_traceless_matrix_is_one():
    W = Traceless()(torch.randn(5, 5, dtype=torch.float64))
    assert abs(float(torch.linalg.det(torch.linalg.matrix_exp(W))) - 1) < 1e-10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cholesky_factors_of_torch(dtype):
    covariance = torch.randn(4, 7, 7, dtype=dtype)
    L = torch.linalg.cholesky(covariance @ covariance.mT + torch.eye(7, dtype=dtype))
    constraint = CholeskyFactor()
    assert constraint.contains(L).all()
    assert torch.allclose(constraint(constraint.right_inverse(L)), L)
    made = constraint(torch.randn(4, 7, 7, dtype=dtype))
    assert distributions.constraints.lower_cholesky.check(made).all()
    assert constraint.contains(distributions.transforms.LowerCholeskyTransform()(made)).all()


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 1e3, 1e6])
def test_cholesky_factors_of_any_size_come_back(scale):
    L = (scale * CholeskyFactor().sample((50, 5, 5))).requires_grad_()
    value = CholeskyFactor()(CholeskyFactor().right_inverse(L))
    assert ((value - L).abs() <= 1e-4 * L.abs()).all()


def test_adam_reaches_the_cholesky_factor_of_a_covariance():
    target = torch.linalg.cholesky(
        torch.tensor([[4.0, 2.0, 0.0], [2.0, 5.0, 1.0], [0.0, 1.0, 2.0]], dtype=torch.float64)
    )
    starts = {
        "random": CholeskyFactor().sample((3, 3), dtype=torch.float64),
        "eye": torch.eye(3, dtype=torch.float64),
        "tiny": 1e-3 * torch.eye(3, dtype=torch.float64),
        "ones": torch.ones(3, 3, dtype=torch.float64).tril(),
        "large": 20 * torch.eye(3, dtype=torch.float64),
    }
    first = torch.stack([*starts.values()])
    free = CholeskyFactor().right_inverse(first).clone().requires_grad_()
    optimizer = torch.optim.Adam([free], lr=0.3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 800)
    for _ in range(800):
        optimizer.zero_grad()
        (CholeskyFactor()(free) - target).square().sum().backward()
        optimizer.step()
        schedule.step()
    apart = torch.linalg.matrix_norm(CholeskyFactor()(free).detach() - target)
    assert not [k for k, a in zip(starts, apart, strict=True) if a >= 1e-3]


@pytest.mark.parametrize(
    ("spec", "shape", "words"),
    [
        ("banded(width=-1)", (3, 3), "0 or more, got -1"),
        ("banded(width=1.5)", (3, 3), "must be a whole number"),
        ("block_diagonal(sizes=[])", (3, 3), r"1 or more, got \[\]"),
        ("block_diagonal(sizes=[2, 0])", (3, 3), "1 or more"),
        ("block_diagonal(sizes=[2, 2])", (3, 3), "square matrix of 4 rows"),
        ("hamiltonian", (3, 3), "even number of rows"),
        ("traceless", (3, 4), "square"),
        ("circulant", (3, 4), "square"),
    ],
)
def test_what_does_not_fit_is_refused(spec, shape, words):
    layer = torch.nn.Linear(*reversed(shape))
    with pytest.raises(ValueError, match=words) as error:
        constrained.constrain(layer, "weight", spec)
    assert str(error.value).startswith("'weight': ")
    assert type(layer) is torch.nn.Linear
