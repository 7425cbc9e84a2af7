"""The one tolerance: scaled by dtype, size and magnitude, and calibrated on computed members."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from constrained import get, tolerance
from constrained.constraint.tolerance import working_dtype

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def orthogonal_matrix(n, dtype=torch.float32):
    return torch.linalg.qr(torch.randn(n, n, dtype=dtype)).Q


@pytest.mark.parametrize("dtype", DTYPES)
def test_scales_with_the_magnitude(dtype):
    x = torch.randn(5, 3).to(dtype)
    assert torch.allclose(tolerance(8 * x, 2), 8 * tolerance(x, 2), rtol=1e-3)


def test_grows_with_the_unit_in_the_last_place():
    x = torch.ones(4, 4, dtype=torch.float64)
    found = [float(tolerance(x.to(dtype), 2)) for dtype in DTYPES]
    assert found[2] == pytest.approx(4 * 2**-7, rel=1e-3)
    assert found[3] == pytest.approx(4 * 2**-10, rel=1e-2)


def test_grows_with_the_norm_only_by_what_is_computed():
    small, large = torch.ones(4, 4), torch.ones(400, 400)
    eps = torch.finfo(torch.float32).eps
    assert float(tolerance(small, 2)) == pytest.approx((4 + 8 * 4) * eps)
    assert float(tolerance(large, 2)) == pytest.approx((4 + 8 * 400) * eps)
    # Storing an entry in bfloat16 errs alike in a large matrix and in a small one.
    ratio = tolerance(large.bfloat16(), 2) / tolerance(small.bfloat16(), 2)
    assert float(ratio) < 1.02


def test_one_number_for_each_element_in_the_working_precision():
    x = torch.randn(2, 5, 4, 3)
    assert tolerance(x, 2).shape == (2, 5)
    assert tolerance(x, 0).shape == x.shape
    assert tolerance(x, 4).shape == ()
    assert tolerance(x.bfloat16(), 2).dtype == torch.float32
    assert tolerance(x.double(), 2).dtype == torch.float64
    assert tolerance(x.to(torch.complex64), 2).dtype == torch.float32
    assert torch.equal(tolerance(x, 2)[1, 3], tolerance(x[1, 3], 2))


def test_carries_no_gradient():
    assert not tolerance(torch.randn(3, 3, requires_grad=True), 2).requires_grad


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_squares_neither_underflow_nor_overflow(scale):
    x = torch.full((10, 10), scale)
    expected = (4 + 80) * torch.finfo(torch.float32).eps * scale
    assert float(tolerance(x, 2)) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_of_zero_is_next_to_zero(dtype):
    finfo = torch.finfo(dtype)
    found = float(tolerance(torch.zeros(4, 4, dtype=dtype), 2))
    assert 0 <= found <= 8 * finfo.smallest_normal * finfo.eps


def test_of_no_entries_is_zero():
    assert tolerance(torch.zeros(3, 0, 2), 2).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.complex64, torch.complex64),
    ],
)
def test_working_dtype(dtype, expected):
    assert working_dtype(dtype) == expected


# ---------------------------------------------------------------- calibrated on orthogonal matrices


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 2, 3, 8, 64, 512])
def test_computed_members_are_accepted(n, dtype):
    orthogonal = get("orthogonal")()
    assert orthogonal.contains(orthogonal_matrix(n, dtype))
    U, _, Vh = torch.linalg.svd(torch.randn(n, n, dtype=dtype))
    assert orthogonal.contains(U @ Vh)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n", [1, 2, 3, 8, 64, 512])
def test_rounded_members_are_accepted(n, dtype):
    assert get("orthogonal")().contains(orthogonal_matrix(n).to(dtype))


@pytest.mark.parametrize("n", [2, 8, 64, 512])
def test_a_random_layer_in_bfloat16_is_not_orthogonal(n):
    for _ in range(10):
        assert not get("orthogonal")().contains(nn.Linear(n, n).weight.detach().bfloat16())


@pytest.mark.parametrize("n", [8, 512, 2048])
def test_an_error_of_a_thousandth_is_rejected_at_every_size(n):
    # A random direction would shrink with n in the entries; this error is one of the spectrum.
    W = orthogonal_matrix(min(n, 512))
    if n > 512:
        W = torch.block_diag(*[W] * (n // 512))
    assert get("orthogonal")().contains(W)
    W[:, 0] *= 1 + 1e-3
    assert not get("orthogonal")().contains(W)


def test_a_relative_error_of_a_millionth_is_rejected_in_double():
    W = orthogonal_matrix(64, torch.float64)
    assert not get("orthogonal")().contains(W + 1e-9 * torch.randn_like(W))
