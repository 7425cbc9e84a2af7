"""Positive definite matrices: references, ill-conditioned members, optima."""

from math import log10

import geotorch
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.distributions import constraint_registry, constraints

import constrained
from constrained import tolerance
from constraints import PositiveDefinite

DTYPES = [torch.float32, torch.float64]
spd = PositiveDefinite()


def passes_cholesky(W):
    return bool((torch.linalg.cholesky_ex(W).info == 0).all())


def relative(found, expected):
    return float(((found - expected).norm(dim=(-2, -1)) / expected.norm(dim=(-2, -1))).max())


def with_condition(condition, n, dtype, batch=5):
    """Symmetric matrices with eigenvalues from 1 down to 1 / condition."""
    Q = torch.linalg.qr(torch.randn(batch, n, n, dtype=torch.float64)).Q
    eigenvalues = torch.logspace(0, -log10(condition), n, dtype=torch.float64)
    W = (Q * eigenvalues) @ Q.mT
    return ((W + W.mT) / 2).to(dtype)


def test_values():
    X = torch.tensor([[1.0, 0.0], [3.0, -2.0]])
    torch.testing.assert_close(spd(X), torch.tensor([[1.0, 3.0], [3.0, 13.0]]), rtol=1e-6, atol=0)
    W = torch.tensor([[4.0, 2.0], [2.0, 5.0]])
    expected = torch.tensor([[2.0, 0.0], [1.0, 2.0]])
    torch.testing.assert_close(spd.right_inverse(W), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 2, 3, 16, 64])
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-3, 1.0, 10.0, 20.0, 1e3, 1e6])
def test_g16_every_value_passes_cholesky(dtype, n, scale):
    # geotorch 0.4 fails in 20 of 20 for the scale 20, n = 64, in single precision.
    X = (scale * torch.randn(20, n, n, dtype=dtype)).requires_grad_()
    W = spd(X)
    (gradient,) = torch.autograd.grad((W * torch.randn_like(W)).sum(), X)
    assert passes_cholesky(W)
    assert torch.equal(W, W.mT)
    assert spd.contains(W).all()
    assert torch.isfinite(W).all()
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [8, 64, 256])
def test_values_of_unlike_columns_pass_cholesky(dtype, n):
    noise = torch.randn(2, n, n, dtype=dtype)
    dominant = 1e5 * torch.rand(2, n, 1, dtype=dtype) * (torch.arange(n) == 0)
    falling = torch.logspace(5, -5, n, dtype=dtype)
    negative = 20 * torch.eye(n, dtype=dtype)
    for X in (dominant + 0.1 * noise - negative, falling * noise, falling[:, None] * noise):
        assert passes_cholesky(spd(X))


@pytest.mark.parametrize(
    ("dtype", "condition", "allowed"),
    [
        (torch.float32, 1e3, 1e-6),
        (torch.float32, 1e6, 1e-5),
        (torch.float64, 1e6, 1e-14),
        (torch.float64, 1e12, 1e-14),
    ],
)
@pytest.mark.parametrize("n", [1, 2, 8, 64])
def test_round_trip_of_ill_conditioned_matrices(dtype, condition, allowed, n):
    W = with_condition(condition, n, dtype)
    X = spd.right_inverse(W)
    assert X.is_contiguous()
    assert relative(spd(X), W) <= allowed


@pytest.mark.parametrize("dtype", DTYPES)
def test_round_trip_keeps_the_digits_of_small_rows(dtype):
    scales = torch.logspace(3, -9, 6, dtype=dtype)
    W = spd.sample((10, 6, 6), dtype=dtype) * scales[:, None] * scales
    error = (spd(spd.right_inverse(W)) - W) / (scales[:, None] * scales)
    assert error.abs().max() <= 100 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "W",
    [
        torch.ones(4, 4),
        torch.diag(torch.tensor([1.0, 0.0, 0.0])),
        torch.block_diag(torch.ones(2, 2), torch.eye(3)),
    ],
    ids=["ones", "unit", "block"],
)
def test_singular_matrices_get_finite_parameters(W, dtype):
    W = W.to(dtype)
    assert spd.contains(W)
    X = spd.right_inverse(W)
    assert torch.isfinite(X).all()
    assert (spd(X) - W).norm() <= tolerance(W, 2)
    assert passes_cholesky(spd(X))


def test_the_zero_matrix_is_taken_for_eps():
    value = spd(spd.right_inverse(torch.zeros(3, 3)))
    eps = torch.finfo(torch.float32).eps
    torch.testing.assert_close(value, eps * torch.eye(3), rtol=1e-5, atol=1e-14)


def test_a_batch_of_regular_and_singular_matrices():
    W = torch.stack([torch.eye(3), torch.ones(3, 3), spd.sample((3, 3))])
    found = spd(spd.right_inverse(W))
    one_by_one = torch.stack([spd(spd.right_inverse(w)) for w in W])
    torch.testing.assert_close(found, one_by_one)
    assert ((found - W).norm(dim=(-2, -1)) <= tolerance(W, 2)).all()


def test_g02_asymmetric_matrices_are_refused():
    # geotorch 0.4 takes them, and the weight differs from the assigned one by 101.
    W = torch.eye(3)
    W[0, 1] = 0.5
    assert spd.violation(W) == pytest.approx(0.25)
    with pytest.raises(constrained.InfeasibleError) as error:
        spd.right_inverse(W)
    assert str(error.value).startswith(
        "positive_definite(): the value violates the constraint by 0.25"
    )
    assert spd.violation(torch.diag(torch.tensor([1.0, -3.0]))) == pytest.approx(3.0)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_g05_training_leaves_equal_eigenvalues(optimizer):
    # geotorch 0.4 has a zero gradient at the identity and never moves: loss 4.8 -> 4.8. A Cholesky
    # factor with softplus on the diagonal stalls when started from the singular ones.
    target = spd.sample((4, 4), generator=torch.Generator().manual_seed(5))
    starts = {
        "identity": torch.eye(4),
        "small": 1e-3 * torch.eye(4),
        "ones": torch.ones(4, 4),
        "singular": torch.diag(torch.tensor([1.0, 1, 0, 0])),
    }
    X = torch.stack([spd.right_inverse(start) for start in starts.values()]).requires_grad_()
    optimizer = optimizer([X], lr=0.02)
    for _ in range(500):
        optimizer.zero_grad()
        (spd(X) - target).square().sum().backward()
        optimizer.step()
    for name, found in zip(starts, spd(X).detach(), strict=True):
        assert relative(found, target) < 0.03, name


@pytest.mark.parametrize("W", [torch.eye(3), torch.diag(torch.tensor([4.0, 1.0, 1.0]))])
def test_no_direction_is_dead(W):
    X = spd.right_inverse(W.double())
    jacobian = torch.func.jacrev(spd)(X).reshape(9, 9)
    assert torch.linalg.matrix_rank(jacobian) == spd.dimension((3, 3)) == 6


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 2, 5, 64])
def test_projection(dtype, n):
    for scale in (0.0, 1e-3, 1.0, 1e3):
        x = scale * torch.randn(4, n, n, dtype=dtype)
        found = spd.project(x)
        assert spd.contains(found).all()
        assert passes_cholesky(found)
        assert torch.equal(spd.project(found), found)
        eigenvalues, Q = torch.linalg.eigh((x + x.mT) / 2)
        nearest = (Q * eigenvalues.clamp(min=0).unsqueeze(-2)) @ Q.mT
        moved = 2 * n**1.5 * torch.finfo(dtype).eps * x.norm(dim=(-2, -1))
        assert ((found - nearest).norm(dim=(-2, -1)) <= moved + 1e-6).all()


def test_projection_keeps_interior_elements_bit_for_bit():
    W = with_condition(1e4, 8, torch.float32)
    assert torch.equal(spd.project(W), W)
    for W in (torch.eye(3), -torch.eye(3), torch.zeros(3, 3), torch.ones(3, 3)):
        assert passes_cholesky(spd.project(W))


def test_agrees_with_torch_distributions():
    # The same set, by a Cholesky factor with another diagonal.
    X = torch.randn(3, 4, 4, dtype=torch.float64)
    assert constraints.positive_definite.check(spd(X)).all()
    transform = constraint_registry.transform_to(constraints.positive_definite)
    W = transform(X)
    torch.testing.assert_close(spd(spd.right_inverse(W)), W)


def test_members_of_geotorch_are_members():
    layer = torch.nn.Linear(5, 5)
    geotorch.positive_definite(layer, "weight")
    assert spd.contains(layer.weight)


def test_derivatives():
    for X in (torch.randn(2, 3, 3), torch.zeros(3, 3), spd.right_inverse(torch.eye(3))):
        X = X.double().requires_grad_()
        assert gradcheck(spd, X, check_forward_ad=True)
        assert gradgradcheck(spd, X)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, *DTYPES])
def test_samples(dtype):
    W = spd.sample((200, 4, 4), generator=torch.Generator().manual_seed(6), dtype=dtype)
    assert torch.equal(W, W.mT)
    assert passes_cholesky(W.float())
    torch.testing.assert_close(W.float().mean(0), torch.eye(4), rtol=0, atol=0.15)


def test_shapes():
    with pytest.raises(ValueError) as error:
        spd.check_shape((2, 3, 4))
    assert str(error.value) == (
        "positive_definite(): each element must be a square matrix with a row or more, "
        "but the shape is (2, 3, 4)."
    )
    assert constrained.get("spd").name == "positive_definite"
