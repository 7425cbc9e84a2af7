"""A decomposition that does not converge is tried again, in double precision."""

import pytest
import torch

from constrained import constrain
from constrained.torch_internals import linalg
from constraints.math.svd import svd, svdvals


@pytest.fixture
def stubborn(monkeypatch):
    """Let decompositions in single precision fail to converge, as LAPACK does on some matrices."""
    for name in ("svd", "svdvals"):
        original = getattr(linalg, name)

        def fails(X, *args, original=original, **kwargs):
            if X.dtype in (torch.float32, torch.complex64):
                raise torch.linalg.LinAlgError("The algorithm failed to converge.")
            return original(X, *args, **kwargs)

        monkeypatch.setattr(linalg, name, fails)


@pytest.mark.parametrize("shape", [(4, 4), (6, 3), (2, 5), (3, 4, 2), (0, 3, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_both_ways_agree(shape, dtype, request):
    X = torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(0))
    expected = torch.linalg.svdvals(X)
    request.getfixturevalue("stubborn")
    U, s, Vh = svd(X)
    assert U.dtype == Vh.dtype == dtype and s.dtype == torch.float32
    torch.testing.assert_close((U * s.unsqueeze(-2)) @ Vh, X, rtol=0, atol=1e-5)
    torch.testing.assert_close(s, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(svdvals(X), expected, rtol=1e-5, atol=1e-6)


def test_in_double_precision_the_transpose_has_the_last_word(monkeypatch):
    original = linalg.svd

    def fails(X, **kwargs):
        if X.shape[-2] > X.shape[-1]:
            raise torch.linalg.LinAlgError("The algorithm failed to converge.")
        return original(X, **kwargs)

    monkeypatch.setattr(linalg, "svd", fails)
    X = torch.randn(4, 3, dtype=torch.float64)
    U, s, Vh = svd(X)
    torch.testing.assert_close((U * s) @ Vh, X)


@pytest.mark.usefixtures("stubborn")
@pytest.mark.parametrize("name", ["spectral_norm(bound=0.5)", "orthogonal", "low_rank(rank=2)"])
def test_training_goes_on(name):
    layer = constrain(torch.nn.Linear(5, 4, bias=False), "weight", name)
    optimizer = torch.optim.SGD(layer.parameters(), lr=10.0)
    for _ in range(3):
        optimizer.zero_grad()
        layer(torch.ones(2, 5)).sum().backward()
        optimizer.step()
        assert torch.isfinite(layer.weight).all()
