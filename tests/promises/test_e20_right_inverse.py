"""E20: only a deliberate lack of a right inverse is taken for one."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize as torchs
from torch.testing import assert_close

import constrained.parametrize as ours
from tests.promises.counting import Positive

torch_today = pytest.mark.torch_today


class HalfPrecisionKernel(nn.Module):
    """A right inverse that calls a kernel which does not exist for the dtype."""

    def forward(self, x):
        return x

    def right_inverse(self, y):
        return torch.linalg.qr(y).Q


def check_kernel_error(P):
    m = nn.Linear(3, 3).half()
    with pytest.raises(NotImplementedError, match="Half"):
        P.register_parametrization(m, "weight", HalfPrecisionKernel())
    assert type(m) is nn.Linear


def test_e20_an_error_of_a_kernel_is_not_swallowed():
    check_kernel_error(ours)


@torch_today
def test_e20_kernels_in_torch_today():
    with pytest.raises(pytest.fail.Exception):
        check_kernel_error(torchs)


def test_e20_a_deliberate_refusal_counts_as_no_right_inverse():
    class Refuses(nn.Tanh):
        def right_inverse(self, y):
            raise NotImplementedError("there is none")

    class RefusesBelow(nn.Tanh):
        def right_inverse(self, y):
            return self._inverse(y)

        def _inverse(self, y):
            raise NotImplementedError from None

    for cls in (Refuses, RefusesBelow):
        m = nn.Linear(3, 3)
        before = m.weight.detach().clone()
        ours.register_parametrization(m, "weight", cls())
        assert_close(m.weight.detach(), before.tanh())


def test_e20_a_constraint_must_have_a_right_inverse():
    class Without(Positive):
        def right_inverse(self, value):
            raise NotImplementedError("forgotten")

    m = nn.Linear(3, 3)
    with torch.no_grad():
        m.weight.abs_().add_(0.1)
    with pytest.raises(NotImplementedError, match="forgotten"):
        ours.register_parametrization(m, "weight", Without())
    assert type(m) is nn.Linear


def check_not_finite(P):
    class Logarithm(nn.Module):
        def forward(self, x):
            return x.exp()

        def right_inverse(self, y):
            return y.log()

    m = nn.Linear(3, 3)
    before = m.weight.detach().clone()
    with pytest.raises(ValueError, match="NaN or infinite"):
        P.register_parametrization(m, "weight", Logarithm())
    assert type(m) is nn.Linear
    assert_close(m.weight.detach(), before)


def test_e20_originals_that_are_not_finite_are_refused():
    check_not_finite(ours)


@torch_today
def test_e20_not_finite_in_torch_today():
    with pytest.raises(pytest.fail.Exception):
        check_not_finite(torchs)


def test_e20_a_value_that_is_not_finite_is_refused():
    """Without a right inverse the tensor becomes the original, and the value may be anything."""

    class Logarithm(nn.Module):
        def forward(self, x):
            return x.log()

        def rigth_inverse(self, y):  # sic
            return y.exp()

    m = nn.Linear(3, 3)
    with pytest.raises(ValueError, match="NaN or infinite"):
        ours.register_parametrization(m, "weight", Logarithm())
    assert type(m) is nn.Linear
