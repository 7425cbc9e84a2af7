"""E38: dtypes, devices, shared memory, views and frozen tensors."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.testing._internal.two_tensor import TwoTensor

import constrained
from tests.promises.counting import original

torch_today = pytest.mark.torch_today

SPECS = ["orthogonal", "orthogonal(map='exp')", "low_rank(rank=2)", "positive", "spectral_norm"]
CONVERSIONS = {
    "double": lambda m: m.double(),
    "half": lambda m: m.half(),
    "bfloat16": lambda m: m.bfloat16(),
    "to(float64)": lambda m: m.to(torch.float64),
    "to(cpu)": lambda m: m.to("cpu"),
    "share_memory": lambda m: m.share_memory(),
    "there and back": lambda m: m.double().float(),
}


KINDS = {
    "plain": lambda t: t,
    "shared": lambda t: t.share_memory_(),
    "expanded": lambda t: t[:1].expand(6, 6),
    "subclass": lambda t: TwoTensor(t, t.clone()),
}
OPTIMIZERS = [
    lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    lambda p: torch.optim.AdamW(p, lr=0.01),
]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("conversion", CONVERSIONS)
def test_e38_conversions(spec, conversion, swap_mode, measured):
    del swap_mode
    m = constrained.constrain(nn.Linear(6, 6), "weight", spec)
    before = m.weight.detach().clone()
    m.weight  # noqa: B018 - a value that is stored must not survive the conversion
    CONVERSIONS[conversion](m)
    assert m.weight.dtype == m.bias.dtype == m(torch.ones(1, 6, dtype=m.bias.dtype)).dtype
    error = (m.weight.double() - before.double()).abs().max()
    # The value was in single precision.
    eps = max(torch.finfo(dtype).eps for dtype in (m.weight.dtype, before.dtype))
    assert error <= 8 * eps * before.abs().max().clamp(min=1)
    constrained.assert_feasible(m)
    m(torch.ones(1, 6, dtype=m.bias.dtype)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in m.parameters())
    if conversion == "half":
        measured(f"{spec} in half precision: error {error:.0e}")


def test_e38_swapped_tensors():
    m = constrained.constrain(nn.Linear(4, 4), "weight", "orthogonal")
    other = constrained.constrain(nn.Linear(4, 4), "weight", "orthogonal")
    expected = other.weight.detach().clone()
    for layer in (m, other):
        layer.parametrizations.weight.forget()
    torch.utils.swap_tensors(original(m), original(other))
    assert torch.equal(m.weight, expected)


@pytest.mark.parametrize("spec", SPECS)
def test_e38_views_and_strides(spec):
    base = torch.rand(12, 12)
    for tensor in (base[::2, ::2], base.T[:6, :6], base[3:9, 2:8]):
        m = nn.Module()
        m.register_parameter("w", nn.Parameter(tensor))
        constrained.constrain(m, "w", spec)
        optimizer = torch.optim.LBFGS(m.parameters(), max_iter=3)

        def closure(m=m, optimizer=optimizer):
            optimizer.zero_grad()
            loss = (m.w - 0.1).pow(2).sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        constrained.assert_feasible(m)


@pytest.mark.parametrize("spec", SPECS)
def test_e38_frozen_tensors_stay_frozen(spec):
    m = nn.Linear(4, 4)
    m.weight.requires_grad_(False)
    constrained.constrain(m, "weight", spec)
    assert not any(p.requires_grad for p in m.parametrizations.weight.parameters())
    assert not m.weight.requires_grad
    m(torch.ones(1, 4)).sum().backward()
    twin = copy.deepcopy(m)
    constrained.release(m)
    assert isinstance(m.weight, nn.Parameter) and not m.weight.requires_grad
    assert not twin.weight.requires_grad


@pytest.mark.parametrize(
    "spec", ["positive", "symmetric", "orthogonal", "simplex", "interval(0, 1)"]
)
def test_e38_empty_batches(spec):
    m = nn.Module()
    m.register_parameter("w", nn.Parameter(torch.ones(0, 3, 3)))
    constrained.constrain(m, "w", spec)
    assert m.w.shape == (0, 3, 3)
    m.w.sum().backward()
    constrained.assert_feasible(m)


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
@pytest.mark.parametrize("spec", ["hermitian"])
def test_e38_complex_parameters(spec):
    m = nn.Linear(4, 4, dtype=torch.complex64)
    constrained.constrain(m, "weight", spec)
    optimizer = torch.optim.Adam(m.parameters(), lr=0.1)
    m(torch.ones(1, 4, dtype=torch.complex64)).abs().sum().backward()
    optimizer.step()
    constrained.assert_feasible(m)
    m.to(torch.complex128)
    constrained.assert_feasible(m)
    with pytest.raises(TypeError, match="'bias'.*needs a real floating-point tensor"):
        constrained.constrain(m, "bias", "positive")


@torch_today
@pytest.mark.parametrize("make", OPTIMIZERS)
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("kind", KINDS)
def test_e38_tensors_of_every_kind_are_trained(kind, spec, make, swap_mode):
    del swap_mode
    m = nn.Linear(6, 6, bias=False)
    m.weight = nn.Parameter(KINDS[kind](m.weight.detach().abs()))
    constrained.constrain(m, "weight", spec)
    optimizer = make(m.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        before = m.weight.detach().clone()
        m(torch.randn(2, 6)).pow(2).sum().backward()
        optimizer.step()
        assert not torch.equal(m.weight, before)
        constrained.assert_feasible(m)
    optimizer.zero_grad()
    constrained.rebase(m)
    value = m.weight.detach().clone()
    twin = copy.deepcopy(m)
    twin.double()
    constrained.assert_feasible(twin)
    constrained.release(m)
    assert isinstance(m.weight, nn.Parameter) and torch.equal(m.weight, value)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_e38_conversions_in_torch_today(dtype, measured):
    m = parametrizations.orthogonal(nn.Linear(6, 6))
    before = m.weight.detach().clone()
    with torch.no_grad():
        m.parametrizations.weight.original.add_(1e-2 * torch.randn(6, 6).tril(-1))
        before = m.weight.detach().clone()
        m.to(dtype)
        error = (m.weight.float() - before).abs().max()
    assert not error < 0.1
    measured(f"orthogonal in {dtype}: error {error:.1g}")
