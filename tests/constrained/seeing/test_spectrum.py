"""Ranks and conditions of matrices that are stored in any precision."""

import pytest
import torch
from torch import nn

from constrained import constrain, report


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("size", [16, 256])
def test_the_rank_is_that_of_the_set(dtype, size):
    """In bfloat16 a bound of ``n eps`` would be above the largest singular value."""
    torch.manual_seed(0)
    rows = {
        spec: report(constrain(nn.Linear(size, size, dtype=dtype), "weight", spec)).rows[0]
        for spec in ("orthogonal", "low_rank(rank=8)")
    }
    assert rows["orthogonal"].rank == size
    assert rows["orthogonal"].condition < 1.1
    assert rows["low_rank(rank=8)"].rank == 8
    assert 1 < rows["low_rank(rank=8)"].condition < 10
