"""E28: weight norm and spectral norm have the right derivatives, and reading them is pure."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, hessian, jvp, vmap
from torch.nn.utils import parametrizations as torchs
from torch.testing import assert_close

from constrained import constrain

torch_today = pytest.mark.torch_today
# Forward-mode differentiation, whose rules torch still scripts.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")

DOUBLE = torch.float64


def ours(layer, name):
    return constrain(layer, "weight", name)


def torchs_(layer, name):
    return getattr(torchs, name)(layer)


def layer(make, name, **kwargs):
    return make(nn.Linear(4, 3, bias=False, dtype=DOUBLE, **kwargs), name)


def loss_of(m):
    """The parameters of a layer, and a loss as a function of them."""
    x = torch.randn(5, 4, dtype=DOUBLE)
    params = {name: p.detach() for name, p in m.named_parameters()}

    def loss(*values):
        return functional_call(m, dict(zip(params, values, strict=True)), (x,)).pow(3).sum()

    return tuple(params.values()), loss


def hessian_vector_error(make):
    """The relative error of a Hessian-vector product against a difference quotient."""
    m = layer(make, "weight_norm")
    params, loss = loss_of(m)
    vector = [torch.randn_like(p) for p in params]
    leaves = [p.clone().requires_grad_() for p in params]
    gradient = torch.autograd.grad(loss(*leaves), leaves, create_graph=True)
    product = sum((g * v).sum() for g, v in zip(gradient, vector, strict=True))
    found = torch.autograd.grad(product, leaves)

    def gradient_at(step):
        moved = [(p + step * v).requires_grad_() for p, v in zip(params, vector, strict=True)]
        return torch.autograd.grad(loss(*moved), moved)

    pairs = zip(gradient_at(1e-5), gradient_at(-1e-5), strict=True)
    flat = torch.cat([((a - b) / 2e-5).flatten() for a, b in pairs])
    return float((torch.cat([f.flatten() for f in found]) - flat).norm() / flat.norm())


def test_e28_weight_norm_second_derivative(measured):
    error = hessian_vector_error(ours)
    measured(f"weight_norm: Hessian-vector error {error:.0e}")
    assert error < 1e-7


@torch_today
def test_e28_weight_norm_second_derivative_in_torch_today(measured):
    error = hessian_vector_error(torchs_)
    measured(f"weight_norm: Hessian-vector error {error:.2f}")
    assert error > 0.1


def check_forward_mode(make):
    m = layer(make, "weight_norm")
    params, loss = loss_of(m)
    vector = tuple(torch.randn_like(p) for p in params)
    leaves = [p.clone().requires_grad_() for p in params]
    gradient = torch.autograd.grad(loss(*leaves), leaves)
    expected = sum((g * v).sum() for g, v in zip(gradient, vector, strict=True))
    assert_close(jvp(loss, params, vector)[1], expected)
    assert len(hessian(loss, argnums=(0, 1))(*params)) == 2


def test_e28_weight_norm_forward_mode():
    check_forward_mode(ours)


@torch_today
def test_e28_weight_norm_forward_mode_in_torch_today(measured):
    with pytest.raises(NotImplementedError, match="forward AD") as error:
        check_forward_mode(torchs_)
    measured(f"jvp of weight_norm: {error.typename}")


def test_e28_weight_norm_of_zero_rows():
    m = nn.Linear(4, 3, bias=False)
    with torch.no_grad():
        m.weight[1] = 0
    expected = m.weight.detach().clone()
    ours(m, "weight_norm")
    assert_close(m.weight.detach(), expected)
    m.weight.pow(2).add(m.weight).sum().backward()
    assert all(p.grad.isfinite().all() for p in m.parameters())
    assert any((p.grad[1] != 0).all() for p in m.parameters())


@torch_today
def test_e28_weight_norm_of_zero_rows_in_torch_today(measured):
    m = nn.Linear(4, 3, bias=False)
    with torch.no_grad():
        m.weight[1] = 0
    torchs_(m, "weight_norm")
    assert m.weight[1].isnan().all()
    measured("weight_norm of a zero row: NaN")


def check_pure_reads(make):
    m = layer(make, "spectral_norm").train()
    before = {key: value.clone() for key, value in m.state_dict().items()}
    values = [m.weight.detach().clone() for _ in range(5)]
    assert m.weight.shape == (3, 4)
    assert all(torch.equal(value, values[0]) for value in values)
    assert all(torch.equal(before[key], value) for key, value in m.state_dict().items())


def check_vmap(make):
    m = layer(make, "spectral_norm").train()
    weights = 3 * torch.randn(6, 3, 4, dtype=DOUBLE)
    name = "parametrizations.weight.original"
    x = torch.randn(4, dtype=DOUBLE)
    found = vmap(lambda w: functional_call(m, {name: w}, (x,)))(weights)
    expected = torch.stack([functional_call(m, {name: w}, (x,)) for w in weights])
    assert_close(found, expected)


def test_e28_reads_of_spectral_norm_are_pure():
    check_pure_reads(ours)


@torch_today
def test_e28_reads_of_spectral_norm_in_torch_today(measured):
    with pytest.raises(AssertionError):
        check_pure_reads(torchs_)
    measured("reading spectral_norm changes its buffers")


def test_e28_vmap_of_spectral_norm_in_training():
    check_vmap(ours)


@torch_today
def test_e28_vmap_of_spectral_norm_in_torch_today(measured):
    with pytest.raises(RuntimeError, match="in-place|inplace|Batching rule") as error:
        check_vmap(torchs_)
    measured(f"vmap of spectral_norm: {error.typename}")
