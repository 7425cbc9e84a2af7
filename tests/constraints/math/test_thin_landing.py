"""Steps along gradients of low rank end at orthogonal matrices, and others are refused."""

import pytest
import torch

from constraints.math.polar import polar_factor
from constraints.math.thin_landing import _Steps, is_probably_orthogonal, thin_landing_

N = 256


def numbers(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def orthogonal(n=N, dtype=torch.float32):
    return torch.linalg.qr(numbers(n, n, dtype=torch.float64)).Q.to(dtype).contiguous()


def thin(n=N, rank=16, size=1.0, dtype=torch.float32):
    found = numbers(n, rank, seed=1, dtype=torch.float64) @ numbers(
        rank, n, seed=2, dtype=torch.float64
    )
    return (size * found / found.norm()).to(dtype)


def defect(W):
    return float((W.double().mT @ W.double() - torch.eye(len(W), dtype=torch.float64)).norm())


def landed(W, G, rate, notes, tries=8):
    """Try until a range of the right dimension has been found, as the steps of a training do."""
    for _ in range(tries):
        given = G.clone()
        if thin_landing_(W, given, rate, notes):
            return given
        assert torch.equal(given, G)
    return None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", [1e-3, 1e-2, 0.1, 0.9])
@pytest.mark.parametrize("rank", [1, 32])
def test_the_step_ends_orthogonal_where_the_polar_factor_would(dtype, size, rank):
    W, G = orthogonal(dtype=dtype), thin(rank=rank, size=10 * size, dtype=dtype)
    rate = 0.1
    notes = {}
    found = landed(W, G, rate, notes)
    assert found is not None
    end = W - rate * found
    assert defect(end) <= defect(W) + 40 * torch.finfo(dtype).eps * N**0.5
    assert is_probably_orthogonal(end, notes)
    tangent = G - W @ (W.mT @ G + G.mT @ W) / 2
    other = polar_factor(W - rate * tangent)
    # Both agree to second order, and rounding is in each entry.
    far = (rate * tangent).norm()
    assert (end - other).norm() <= far**3 + 200 * torch.finfo(dtype).eps * N**0.5


@pytest.mark.parametrize("share", [1e-4, 1e-2])
def test_a_gradient_that_is_thin_but_for_a_little_is_refused(share):
    W = orthogonal()
    full = numbers(N, N, seed=3)
    G = thin(rank=8) + share * full / full.norm()
    assert landed(W, G, 0.1, {}, tries=40) is None


def test_one_more_direction_than_was_sought_is_noticed_by_the_check():
    W, notes = orthogonal(), {}
    assert landed(W, thin(rank=4), 0.1, notes) is not None
    # From now on few directions are looked for.
    sought = notes["thin"]._size
    assert sought <= 8
    given = thin(rank=sought + 8)
    before = given.clone()
    assert not thin_landing_(W, given, 0.1, notes)
    assert torch.equal(given, before)
    # The next step looks for more, and finds them.
    assert landed(W, thin(rank=sought + 8), 0.1, notes) is not None


def test_a_dense_gradient_is_tried_more_and_more_rarely():
    W, G, notes = orthogonal(), numbers(N, N, seed=3), {}
    tried = 0
    original = _Steps.land_

    def counting(self, *given):
        nonlocal tried
        tried += 1
        return original(self, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Steps, "land_", counting)
        for _ in range(200):
            assert not thin_landing_(W, G, 0.1, notes)
    assert 1 <= tried <= 15


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_left_as_it_was(bad):
    W, G = orthogonal(), thin()
    G[200, 3] = bad
    before = G.clone()
    for _ in range(4):
        assert not thin_landing_(W, G, 0.1, notes := {})
        assert notes
    torch.testing.assert_close(G, before, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("shape", [(64, 64), (256, 200), (2, 256, 256)])
def test_other_shapes_go_another_way(shape):
    W = numbers(*shape)
    assert not thin_landing_(W, W.clone(), 0.1, notes := {})
    assert not notes


def test_long_steps_go_another_way():
    assert landed(orthogonal(), thin(size=100.0), 0.1, {}) is None


def test_the_check_sees_a_matrix_that_is_not_orthogonal():
    W, notes = orthogonal(), {}
    assert is_probably_orthogonal(W, notes)
    for size in (1e-3, 1e-4):
        bent = W + size * numbers(N, N, seed=5) / N**0.5
        assert not is_probably_orthogonal(bent, notes)
    broken = W.clone()
    broken[0, 0] = float("nan")
    assert not is_probably_orthogonal(broken, notes)


def test_a_drift_over_many_steps_is_seen_and_not_more_than_rounding():
    W, notes = orthogonal(), {}
    for i in range(300):
        G = numbers(N, 4, seed=10 + i) @ numbers(4, N, seed=1000 + i) / N
        if thin_landing_(W, G, 0.01, notes):
            W = W - 0.01 * G
        if not is_probably_orthogonal(W, notes):
            W = polar_factor(W)
    assert defect(W) <= 100 * torch.finfo(W.dtype).eps * N**0.5
