"""Views by name: conv, gates, heads, qkv."""

import re

import pytest
import torch
from torch import nn

from constrained import constrain, spec


class Conv1D(nn.Module):
    """As that of transformers: a linear layer whose inputs come first."""

    def __init__(self, outputs, inputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))


@pytest.mark.parametrize(
    ("module", "target", "view", "pattern", "sizes"),
    [
        (nn.Conv1d(2, 3, 5), "weight", "conv", "o i w -> o (i w)", {}),
        (nn.Conv2d(2, 3, 5), "weight", " conv ", "o i h w -> o (i h w)", {}),
        (nn.Conv3d(2, 3, 5), "weight", "conv", "o i d h w -> o (i d h w)", {}),
        (nn.ConvTranspose2d(2, 3, 5), "weight", "conv", "i o h w -> o (i h w)", {}),
        (nn.Conv2d(4, 6, 3, groups=2), "weight", "conv", "(2 o) i h w -> 2 o (i h w)", {}),
        (nn.LSTM(3, 5), "weight_hh_l0", "gates", "(g h) i -> g h i", {"g": 4}),
        (nn.LSTM(3, 5), "bias_hh_l0", "gates", "(g h) -> g h", {"g": 4}),
        (nn.GRUCell(3, 5), "weight_ih", "gates", "(g h) i -> g h i", {"g": 3}),
        (nn.Linear(3, 8), "weight", "gates(2)", "(g h) i -> g h i", {"g": 2}),
        (nn.Linear(3, 8), "weight", "heads( 4 )", "(n h) i -> n h i", {"n": 4}),
        (nn.Linear(3, 12), "weight", "qkv", "(s h) i -> s h i", {"s": 3}),
        (nn.Linear(3, 12), "weight", "qkv(2)", "(s n h) i -> s n h i", {"s": 3, "n": 2}),
        (Conv1D(12, 4), "weight", "qkv(2)", "i (s n h) -> s n h i", {"s": 3, "n": 2}),
        (
            nn.MultiheadAttention(4, 2),
            "in_proj_weight",
            "qkv(2)",
            "(s n h) i -> s n h i",
            {"s": 3, "n": 2},
        ),
    ],
)
def test_a_name_means_a_pattern(module, target, view, pattern, sizes):
    constrain(module, target, "sphere", view=view)
    written = {"name": "sphere", "view": pattern, **sizes}
    assert spec(module) == {target: written}


def test_a_name_in_a_class_that_is_constrained_already():
    module = Conv1D(12, 4)
    module.bias = nn.Parameter(torch.ones(12))
    constrain(module, {"bias": "ball", "weight": {"name": "orthogonal", "view": "heads(3)"}})
    heads = module.weight.detach().T.unflatten(0, (3, 4))
    torch.testing.assert_close(heads @ heads.mT, torch.eye(4).expand(3, 4, 4))


@pytest.mark.parametrize(
    ("module", "target", "view", "message"),
    [
        (
            nn.Linear(3, 4),
            "weight",
            "cnov",
            "be one of conv, gates, gates(n), heads(n), qkv, qkv(n). Did you mean 'conv'?",
        ),
        (nn.Linear(3, 4), "weight", "conv", "a kernel has 3, 4 or 5 dimensions"),
        (nn.Linear(3, 4), "weight", "conv(2)", "must read 'from -> to'"),
        (nn.Linear(3, 4), "weight", "gates", "Linear is none of them; give the number of gates"),
        (nn.Linear(3, 4), "weight", "heads", "needs the number of heads, as in 'heads(8)'"),
        (nn.Linear(3, 4), "weight", "heads(0)", "must be positive"),
        (
            nn.Linear(3, 4),
            "weight",
            "heads(3)",
            "'heads(3)' does not fit a tensor of shape (4, 3): its 4 outputs are not 3 equal parts",
        ),
        (Conv1D(9, 6), "weight", "qkv(2)", "its 9 outputs are not 6 equal parts"),
        (nn.LSTM(3, 5), "bias_hh_l0", "gates(3)", "its 20 outputs are not 3 equal parts"),
        (nn.Conv2d(2, 4, 3), "weight", "heads(2)", "it is for matrices and biases"),
        (nn.LSTM(3, 5, proj_size=2), "weight_hr_l0", "gates", "which has no gates"),
        (nn.Linear(3, 4), "weight", "heads(" + "9" * 50 + ")", "must read 'from -> to'"),
    ],
)
def test_a_name_that_does_not_fit(module, target, view, message):
    with pytest.raises(ValueError, match=f"^'{target}': .*{re.escape(message)}"):
        constrain(module, target, "sphere", view=view)


def test_a_lazy_layer_takes_a_name_before_it_has_a_shape():
    layer = constrain(nn.LazyConv2d(4, 3), "weight", "orthogonal", view="conv")
    assert spec(layer) == {"weight": {"name": "orthogonal", "view": "conv"}}
    layer(torch.randn(1, 2, 5, 5))
    kernel = layer.weight.detach().flatten(1)
    torch.testing.assert_close(kernel @ kernel.T, torch.eye(4))
