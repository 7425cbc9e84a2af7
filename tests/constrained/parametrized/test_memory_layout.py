"""Values are contiguous in memory, as a plain parameter is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from constrained import baked_state_dict, constrain, release
from tests.promises.catalogue import every_constraint, linear


def check(layer):
    """Values, state dicts and released tensors are contiguous, as without a constraint."""
    assert layer.weight.is_contiguous()
    assert layer.weight.view(-1).numel() == layer.weight.numel()
    with torch.no_grad():
        assert layer.weight.is_contiguous()
    for name, tensor in [*layer.state_dict().items(), *baked_state_dict(layer).items()]:
        assert tensor.is_contiguous(), name


@every_constraint((6, 3), (4, 4))
def test_values_are_contiguous(name, arguments, shape):
    layer = linear(name, arguments, shape)
    check(layer)
    layer.weight.square().sum().backward()
    torch.optim.SGD(layer.parameters(), lr=0.1).step()
    check(layer)
    assert release(layer).weight.is_contiguous()


@pytest.mark.parametrize(
    "name", ["orthogonal", "positive", "ball", "low_rank(rank=1)", "symmetric"]
)
@pytest.mark.parametrize(
    ("view", "sizes"),
    [("a b -> b a", {}), ("(g a) b -> g b a", {"g": 3}), ("a (g b) -> g a b", {"g": 2})],
)
def test_views_that_permute(name, view, sizes):
    layer = nn.Linear(*{"a b -> b a": (4, 4), "(g a) b -> g b a": (2, 6)}.get(view, (4, 2)))
    constrain(layer, "weight", name, view=view, **sizes)
    check(layer)
    layer.weight.square().sum().backward()
    torch.optim.SGD(layer.parameters(), lr=0.1).step()
    check(layer)


def test_a_kernel_with_its_channels_last_stays_so():
    layer = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    constrain(layer, "weight", "interval(low=-1, high=1)")
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)
    assert not layer.weight.is_contiguous()
