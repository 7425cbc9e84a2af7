"""Every constraint at the ends of the range: one row, one column, 512 of both."""

import pytest
import torch

from constrained import get
from constrained.testing.case import unpack
from constrained.testing.promises.catalogue import configurations, every_constraint
from constrained.tolerance import tolerance

SMALL = (1, 1), (1, 7), (7, 1)
LARGE = (512, 512), (512, 3), (3, 512)


def check(name, arguments, shape, dtype):
    constraint = get(name)(**arguments)
    generator = torch.Generator().manual_seed(0)
    inside = constraint.sample(shape, generator=generator, dtype=dtype)
    free = unpack(constraint.right_inverse(inside))
    found = constraint(*free)
    granted = tolerance(inside, constraint.event_dim)
    assert (constraint.violation(found) <= granted).all()
    unit = inside.norm()
    assert (found - inside).norm() <= 1e-5 * unit
    for scale in (1e-6, 1.0, 1e6):
        leaves = [
            p
            if i in constraint.frozen
            else (scale * torch.randn(p.shape, generator=generator, dtype=dtype)).requires_grad_()
            for i, p in enumerate(free)
        ]
        value = constraint(*leaves)
        assert torch.isfinite(value).all()
        assert (constraint.violation(value) <= tolerance(value, constraint.event_dim)).all()
        weight = torch.randn(value.shape, generator=generator, dtype=dtype)
        for gradient in torch.autograd.grad(
            (value * weight).sum(), [p for p in leaves if p.requires_grad], allow_unused=True
        ):
            assert gradient is None or torch.isfinite(gradient).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@every_constraint(*SMALL)
def test_one_row_and_one_column(name, arguments, shape, dtype):
    check(name, arguments, shape, dtype)


@pytest.mark.slow
@every_constraint(*LARGE)
def test_512_rows_and_columns(name, arguments, shape):
    check(name, arguments, shape, torch.float32)


def test_every_name_is_tried():
    assert {name for name, *_ in configurations()} >= {"orthogonal", "simplex", "positive"}
