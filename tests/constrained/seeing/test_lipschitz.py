"""The Lipschitz bound of a network."""

import pytest
import torch
from torch import nn

from constrained import constrain, report
from constrained.seeing.lipschitz import lipschitz


def stretch(net, shape):
    """How much a network stretches at most, found by power iteration on its Jacobian."""
    x = torch.randn(shape, dtype=torch.float64)
    net = net.double().eval()
    v = torch.randn_like(x)
    for _ in range(60):
        u = torch.func.jvp(net, (x,), (v,))[1]
        v = torch.func.vjp(net, x)[1](u)[0]
        v = v / v.norm()
    return float(torch.func.jvp(net, (x,), (v,))[1].detach().norm())


def test_the_product_of_linear_layers():
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Sequential(nn.Linear(3, 2), nn.Sigmoid()))
    net[0].weight.data.copy_(torch.diag(torch.tensor([2.0, 1.0, 0.5])))
    net[2][0].weight.data.copy_(torch.tensor([[3.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
    constrain(net, {"0.weight": "spectral_norm(bound=4)"})
    assert lipschitz(net).bound == pytest.approx(2 * 3 / 4)
    assert "at most 1.5" in str(report(net))


@pytest.mark.parametrize("spec", ["spectral_norm_conv(bound=0.5)", "orthogonal_conv"])
def test_what_a_constraint_certifies(spec):
    net = constrain(nn.Sequential(nn.Conv2d(3, 3, 3, padding=1)), "0.weight", spec)
    bound = lipschitz(net).bound
    assert bound == pytest.approx(0.5 if "spectral" in spec else 1.0, rel=1e-3)
    assert 0.3 * bound < stretch(net, (1, 3, 6, 6)) <= bound


@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 3, "padding": "same", "dilation": 2},
        {"kernel_size": 4, "stride": 2},
        {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0)},
        {"kernel_size": 3, "stride": 2, "dilation": 2},
        {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
        {"kernel_size": 3, "padding": 1, "padding_mode": "circular", "stride": 2},
        {"kernel_size": 3, "groups": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("ones", [False, True])
def test_any_convolution_is_bounded(settings, ones):
    net = nn.Sequential(nn.Conv2d(4, 6, **settings))
    if ones:
        net[0].weight.data.fill_(0.1)
    constrain(net, "0.weight", "low_rank(rank=2)", view="o i h w -> o (i h w)")
    bound = lipschitz(net).bound
    found = stretch(net, (1, 4, 9, 9))
    assert 0.2 * bound < found <= bound * (1 + 1e-6)


@pytest.mark.parametrize(
    "layer, reason",
    [
        (nn.LayerNorm(3), "'1' is a LayerNorm, for which no constant is known"),
        (nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"), "'1' pads by 'reflect'"),
        (
            nn.Conv2d(3, 3, 3, padding=2, padding_mode="circular"),
            "'1' pads by 'circular'",
        ),
        (type("Mine", (nn.Linear,), {})(3, 3), "'1' is a Mine"),
    ],
    ids=str,
)
def test_why_there_is_none(layer, reason):
    found = lipschitz(nn.Sequential(nn.Linear(3, 3), layer))
    assert found.bound is None and found.reason.startswith(reason)


def test_a_model_that_is_no_chain_of_layers():
    module = nn.ModuleDict({"a": nn.Linear(2, 2)})
    constrain(module, "a.weight", "orthogonal")
    assert report(module).lipschitz == (
        None,
        "ModuleDict is neither nn.Sequential nor a known layer",
    )
    assert "Lipschitz" not in str(report(module))


def test_a_single_layer():
    layer = nn.Linear(2, 2)
    layer.weight.data.copy_(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
    constrain(layer, "weight", "spectral_norm(bound=2)")
    assert lipschitz(layer).bound == pytest.approx(2.0)


class Residual(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


def test_a_sequence_that_does_something_else():
    assert "Residual is neither nn.Sequential" in lipschitz(Residual(nn.Linear(2, 2))).reason
    assert "'0' is a Residual" in lipschitz(nn.Sequential(Residual(nn.Linear(2, 2)))).reason
    net = nn.Sequential(nn.Sequential(nn.Identity()))
    assert lipschitz(net).bound == 1
    net[0].register_forward_hook(lambda module, inputs, output: 5 * output)
    assert lipschitz(net).reason == "'0' has hooks, which may change what it does"
    net.register_forward_pre_hook(lambda module, inputs: None)
    assert lipschitz(net).reason.startswith("the network has hooks")


def test_hooks_and_numbers_that_are_not_finite():
    net = nn.Sequential(nn.Linear(3, 3))
    net[0].register_forward_hook(lambda module, inputs, output: 5 * output)
    assert "hooks" in lipschitz(net).reason
    net = nn.Sequential(nn.Linear(3, 3))
    net[0].weight.data[0, 0] = float("nan")
    assert "NaN" in lipschitz(net).reason
    assert "no numbers" in lipschitz(nn.Sequential(nn.Linear(3, 3)).to("meta")).reason


def test_dropout_in_training_mode_enlarges():
    net = nn.Sequential(nn.Dropout(0.5), nn.LeakyReLU(3.0), nn.ELU(2.0))
    assert lipschitz(net).bound == 12
    assert lipschitz(net.eval()).bound == 6
