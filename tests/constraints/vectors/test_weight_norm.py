"""Weight norm: torch's formula, its slices, its derivatives."""

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.utils.parametrizations import weight_norm as torchs

import constrained
from constrained import constrain
from constraints import WeightNorm

# Forward-mode differentiation, whose rules torch still scripts.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")

DOUBLE = torch.float64


def slices(value, dim):
    """The slices of a tensor as rows."""
    return value.reshape(1, -1) if dim is None else value.movedim(dim, 0).flatten(1)


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5), (2, 3, 4, 5), (1, 1), (1, 6)])
@pytest.mark.parametrize("dim", [0, 1, -1, None])
def test_map_against_its_definition(shape, dim):
    constraint = WeightNorm(dim)
    value = torch.randn(shape, dtype=DOUBLE)
    g, v = constraint.right_inverse(value)
    lengths = slices(value, dim).norm(dim=1)
    torch.testing.assert_close(g.flatten(), lengths)
    assert g.numel() == (1 if dim is None else shape[dim])
    assert torch.equal(v, value)
    torch.testing.assert_close(constraint(g, v), value)
    torch.testing.assert_close(constraint(-3 * g, 7 * v), -3 * value)
    scale = torch.rand_like(g) + 0.5
    torch.testing.assert_close(slices(constraint(g, v * scale), dim), slices(value, dim))


@pytest.mark.parametrize("layer", [nn.Linear(4, 3), nn.Conv1d(4, 6, 3), nn.Conv2d(4, 6, 3)])
@pytest.mark.parametrize("dim", [0, 1, None])
def test_parameters_are_those_of_torch(layer, dim):
    value = layer.weight.detach().clone()
    with torch.no_grad():
        theirs = torchs(type(layer)(*_arguments(layer)), dim=dim)
        theirs.weight = value
        expected = theirs.parametrizations.weight
        g, v = WeightNorm(dim).right_inverse(value)
        torch.testing.assert_close(g, expected.original0.detach())
        torch.testing.assert_close(v, expected.original1.detach())
        torch.testing.assert_close(WeightNorm(dim)(2 * g, v), 2 * theirs.weight)


def _arguments(layer):
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return layer.in_channels, layer.out_channels, layer.kernel_size


def test_the_last_dimension_is_not_the_whole_tensor():
    value = torch.randn(4, 3)
    g, _ = WeightNorm(-1).right_inverse(value)
    assert g.shape == (1, 3)
    g, _ = WeightNorm(None).right_inverse(value)
    assert g.shape == ()


def test_batches_of_elements():
    value = torch.randn(2, 5, 4, 3)
    g, v = WeightNorm(event_dim=2).right_inverse(value)
    assert g.shape == (2, 5, 4, 1)
    g, v = WeightNorm(None, event_dim=2).right_inverse(value)
    assert g.shape == (2, 5)
    torch.testing.assert_close(WeightNorm(None, event_dim=2)(g, v), value)


def test_a_gradient_leaves_the_length_of_directions_to_grow():
    g, v = WeightNorm().right_inverse(torch.randn(4, 3))
    v.requires_grad_()
    (gradient,) = torch.autograd.grad(WeightNorm()(g, v).pow(3).sum(), v)
    torch.testing.assert_close((gradient * v).sum(1), torch.zeros(4), rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-45, 1e-38, 1e-30, 1e-6, 1.0, 1e6, 1e30, 1e37])
@pytest.mark.parametrize("dim", [0, 1, None])
def test_every_scale(scale, dim):
    value = torch.randn(4, 3).clamp(-3, 3).abs().add(0.1) * scale
    g, v = WeightNorm(dim).right_inverse(value)
    g, v = g.requires_grad_(), v.clone().requires_grad_()
    found = WeightNorm(dim)(g, v)
    torch.testing.assert_close(found, value, rtol=1e-6, atol=1e-45)
    for gradient in torch.autograd.grad(found, (g, v), torch.randn(4, 3)):
        assert gradient.isfinite().all()


def test_zero_slices():
    value = torch.randn(4, 3, dtype=DOUBLE)
    value[1:3] = 0
    g, v = WeightNorm().right_inverse(value)
    assert (g[1:3] == 0).all()
    assert (v[1:3] == 0).all()
    g, v = g.requires_grad_(), v.clone().requires_grad_()
    found = WeightNorm()(g, v)
    assert torch.equal(found[1:3], torch.zeros(2, 3, dtype=DOUBLE))
    torch.testing.assert_close(found.detach(), value)
    G = torch.randn(4, 3, dtype=DOUBLE)
    first = torch.autograd.grad(found, (g, v), G, create_graph=True)
    torch.testing.assert_close(first[1][1:3], G[1:3])
    second = torch.autograd.grad(first[1].pow(2).sum() + first[0].pow(2).sum(), (g, v))
    assert all(gradient.isfinite().all() for gradient in (*first, *second))
    # Whatever the length says: there is no direction.
    assert torch.equal(WeightNorm()(torch.ones(1, 1), torch.zeros(1, 3)), torch.zeros(1, 3))


OPTIMIZERS = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.1),
    "adam": lambda params: torch.optim.Adam(params, lr=0.03),
    "adamw": lambda params: torch.optim.AdamW(params, lr=0.03, weight_decay=1e-3),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_zero_is_left_in_any_direction(name):
    layer = nn.Linear(3, 4, bias=False)
    nn.init.zeros_(layer.weight)
    constrain(layer, "weight", WeightNorm())
    assert torch.equal(layer.weight, torch.zeros(4, 3))
    optimizer = OPTIMIZERS[name](layer.parameters())
    target = torch.eye(4, 3).flip(1) - torch.eye(4, 3)
    target[3] = 0
    for _ in range(500):
        optimizer.zero_grad()
        (layer.weight - target).square().sum().div(2).backward()
        optimizer.step()
    torch.testing.assert_close(layer.weight.detach(), target, rtol=0, atol=0.01)


@pytest.mark.parametrize("shape, dim", [((3, 2), 0), ((2, 3, 2), 1), ((2, 3), None), ((3,), 0)])
def test_derivatives(shape, dim):
    constraint = WeightNorm(dim)
    g, v = constraint.right_inverse(torch.randn(shape, dtype=DOUBLE))
    free = (torch.randn_like(g).requires_grad_(), v.clone().requires_grad_())
    checks = {"check_batched_grad": True}
    assert gradcheck(constraint, free, check_forward_ad=True, **checks)
    assert gradgradcheck(constraint, free, check_fwd_over_rev=True, **checks)


def test_names_and_arguments():
    assert constrained.get("weight_norm") is WeightNorm
    assert repr(WeightNorm()) == "weight_norm()"
    assert WeightNorm(None).spec() == {"name": "weight_norm", "dim": None}
    for bad in (0.5, "0", True):
        with pytest.raises(TypeError, match="weight_norm: dim must be an integer or None"):
            WeightNorm(bad)
        with pytest.raises(TypeError, match="weight_norm: event_dim must be an integer or None"):
            WeightNorm(0, bad)
    with pytest.raises(ValueError, match="weight_norm: event_dim must have a dimension 2, got 2"):
        WeightNorm(2, event_dim=2)
    with pytest.raises(ValueError, match="weight_norm: event_dim must be at least 0, got -1"):
        WeightNorm(None, event_dim=-1)
    with pytest.raises(ValueError, match=r"element must have a dimension 1, but the shape is \(3,"):
        WeightNorm(1).right_inverse(torch.ones(3))
    with pytest.raises(ValueError, match="must have at least one entry"):
        WeightNorm().right_inverse(torch.ones(0, 3))
    with pytest.raises(ValueError, match="needs finite values, but 1 of 3 are NaN or infinite"):
        WeightNorm().right_inverse(torch.tensor([1.0, torch.nan, 2.0]))
