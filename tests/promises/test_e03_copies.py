"""E03: copies are independent."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize as torchs
from torch.testing import assert_close

import constrained.parametrize as ours
from tests.promises.counting import (
    layer,
    original,
)
from tests.promises.foreign import Squash, squashed

torch_today = pytest.mark.torch_today


def check_copies_in_cached(P):
    m = squashed(P)
    twin = copy.deepcopy(m)
    with torch.no_grad():
        original(twin).zero_()
    with P.cached():
        assert m.weight is not twin.weight
        assert torch.count_nonzero(twin.weight) == 0
        assert torch.count_nonzero(m.weight) == 9


def check_removal_on_a_copy(P):
    m = squashed(P)
    twin = copy.deepcopy(m)
    P.remove_parametrizations(twin, "weight")
    assert m.weight.shape == (3, 3) and P.is_parametrized(m)
    m(torch.ones(1, 3)).sum().backward()


def check_registration_on_a_copy(P):
    m = squashed(P)
    twin = copy.deepcopy(m)
    P.register_parametrization(twin, "bias", Squash())
    assert m.bias.shape == (3,) and isinstance(m.bias, nn.Parameter)


def check_transformer_encoder(P):
    block = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
    P.register_parametrization(block.linear1, "weight", Squash())
    encoder = nn.TransformerEncoder(block, 3, enable_nested_tensor=False)
    with torch.no_grad():
        for i, b in enumerate(encoder.layers):
            original(b.linear1).mul_(i + 1)
    x = torch.randn(2, 3, 4)
    expected = encoder(x)
    with P.cached():
        assert_close(encoder(x), expected)


CHECKS_OF_COPIES = [
    (check_copies_in_cached, AssertionError),
    (check_removal_on_a_copy, AttributeError),
    (check_registration_on_a_copy, KeyError),
    (check_transformer_encoder, AssertionError),
]


@pytest.mark.parametrize("check", [c for c, _ in CHECKS_OF_COPIES])
def test_e03_copies_are_independent(check):
    check(ours)


@torch_today
@pytest.mark.parametrize(("check", "error"), CHECKS_OF_COPIES)
def test_e03_in_torch_today(check, error):
    with pytest.raises(error):
        check(torchs)


def test_e03_an_averaged_model():
    m = layer()
    average = torch.optim.swa_utils.AveragedModel(m)
    optimizer = torch.optim.SGD(m.parameters(), lr=0.1)
    x = torch.randn(2, 3)
    for _ in range(3):
        m(x).pow(2).sum().backward()
        optimizer.step()
        average(x), m(x)
        average.update_parameters(m)
    expected = layer()
    expected.load_state_dict(average.module.state_dict())
    with ours.cached():
        m(x)
        assert_close(average(x), expected(x))
