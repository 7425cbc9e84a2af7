"""A constrained tensor takes by assignment what a plain one takes by ``copy_`` and ``fill_``."""

import pytest
import torch
from torch import nn

import constrained.parametrize as ours
from constrained import constrain, writable


class Kernel(nn.Module):
    """A module whose properties write into raw parameters, as GPyTorch's ``initialize`` does."""

    def __init__(self):
        super().__init__()
        self.raw_lengthscale = nn.Parameter(torch.zeros(1, 3))
        self.raw_noise = nn.Parameter(torch.zeros(1))
        self.raw_mean = nn.Parameter(torch.zeros(()))

    def initialize(self, name, value):
        if name not in self._parameters:
            setattr(self, name, value)
        elif isinstance(value, float):
            getattr(self, name).data.fill_(value)
        else:
            getattr(self, name).data.copy_(value)

    @property
    def lengthscale(self):
        return self.raw_lengthscale.exp()

    @lengthscale.setter
    def lengthscale(self, value):
        self.initialize("raw_lengthscale", torch.as_tensor(value).log())


@pytest.fixture(params=[None, "interval(-5, 5)", "box(-5, 5)"])
def kernel(request):
    kernel = Kernel()
    return kernel if request.param is None else constrain(kernel, "**", request.param)


def test_the_setters_of_gpytorch(kernel):
    for value in (0.9, torch.tensor([0.1, 0.2, 0.3]), torch.tensor([[0.5]])):
        kernel.lengthscale = value
        expected = torch.as_tensor(value).expand(1, 3)
        torch.testing.assert_close(kernel.lengthscale, expected)
    for name in ("raw_noise", "raw_mean", "raw_lengthscale"):
        kernel.initialize(name, 0.5)
        torch.testing.assert_close(
            getattr(kernel, name), torch.full_like(getattr(kernel, name), 0.5)
        )
    with pytest.raises((ValueError, RuntimeError)):
        kernel.initialize("raw_lengthscale", torch.zeros(2))


def test_what_does_not_broadcast_is_refused():
    kernel = constrain(Kernel(), "**", "interval(-5, 5)")
    before = kernel.raw_lengthscale.detach().clone()
    for value in (torch.zeros(2), torch.zeros(3, 1), torch.zeros(2, 3), "0.5", 9.0):
        with pytest.raises((ValueError, TypeError)):
            kernel.raw_lengthscale = value
    assert torch.equal(kernel.raw_lengthscale, before)


def test_the_elements_are_apart_afterwards():
    layer = constrain(nn.Linear(3, 3), "weight", "nonnegative")
    layer.weight = torch.ones(3)
    with torch.no_grad():
        layer.parametrizations.weight.original[0, 0] = 2.0
    assert layer.weight.sum() == 10
    with writable(layer), torch.no_grad():
        layer.weight = 0.5
        layer.weight[0, 0] = 2
    assert layer.weight.sum() == 6
    assert layer.weight.dtype == torch.float32


def test_a_shape_that_is_free_is_left_alone():
    layer = ours.register_parametrization(nn.Linear(3, 3), "weight", nn.Identity(), unsafe=True)
    layer.parametrizations.weight[0].right_inverse = lambda value: value
    layer.weight = torch.ones(3)
    assert layer.weight.shape == (3,)


def test_the_warning_of_a_graph_is_about_the_line_that_assigns():
    layer = constrain(nn.Linear(2, 2), "weight", "positive")
    value = torch.ones(2, 2, requires_grad=True).exp()
    with pytest.warns(UserWarning, match=r"'weight' is computed by positive\(\)") as caught:
        layer.weight = value
    assert [warning.filename for warning in caught] == [__file__]
