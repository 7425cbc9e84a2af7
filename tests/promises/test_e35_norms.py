"""E35: bounds on norms are exact, also for convolutions and zeros; state follows assignment."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations as torchs
from torch.testing import assert_close

import constrained
from constrained import constrain

torch_today = pytest.mark.torch_today

#: By how much rounding may exceed a bound of 1 in single precision.
ROUNDING = 1e-5


def ours(layer):
    return constrain(layer, "weight", "spectral_norm")


def largest(matrix):
    return float(torch.linalg.matrix_norm(matrix.detach().double(), 2))


def operator(layer, size):
    """The convolution of a layer as a matrix, whose columns are the images of unit vectors."""
    channels = layer.in_channels
    images = torch.eye(channels * size**2).reshape(-1, channels, size, size)
    with torch.no_grad():
        return F.conv2d(images, layer.weight, None, layer.stride, layer.padding).flatten(1)


# ------------------------------------------------------------------------------- convolutions


@pytest.mark.parametrize("kernel, stride", [(3, 1), (3, 2), (5, 1)])
def test_e35_the_norm_of_a_convolution(measured, kernel, stride):
    norms = []
    for _ in range(5):
        conv = nn.Conv2d(4, 4, kernel, stride=stride, padding=kernel // 2)
        nn.init.normal_(conv.weight)
        constrain(conv, "weight", f"spectral_norm_conv(stride={stride})")
        norms.append(largest(operator(conv, 16)))
    measured(f"{kernel}x{kernel}, stride {stride}: {min(norms):.2f} to {max(norms):.2f}")
    assert max(norms) <= 1 + ROUNDING
    assert min(norms) > 0.85


def test_e35_the_norm_of_a_circular_convolution_is_exact(measured):
    conv = nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular", bias=False)
    nn.init.normal_(conv.weight)
    constrain(conv, "weight", "spectral_norm_conv(padding_mode='circular', size=16)")
    images = torch.eye(4 * 16**2).reshape(-1, 4, 16, 16)
    norm = largest(conv(images).flatten(1))
    measured(f"circular: {norm:.5f}")
    assert abs(norm - 1) <= ROUNDING


@torch_today
def test_e35_the_norm_of_a_convolution_in_torch_today(measured):
    norms = []
    for _ in range(5):
        conv = nn.Conv2d(4, 4, 3, padding=1)
        nn.init.normal_(conv.weight)
        torchs.spectral_norm(conv, n_power_iterations=100)
        conv.eval()
        assert largest(conv.weight.flatten(1)) <= 1 + 1e-2
        norms.append(largest(operator(conv, 16)))
    measured(f"3x3: {min(norms):.2f} to {max(norms):.2f}")
    assert min(norms) > 1.3


# ---------------------------------------------------------------------------------- assignment


def check_assignment(make):
    m = make(nn.Linear(6, 6)).eval()
    value = torch.diag(torch.tensor([1.0, 0.5, 0.5, 0.5, 0.5, 0.2])).flip(0)
    with torch.no_grad():
        m.weight = value
    norm = largest(m.weight)
    assert abs(norm - 1) <= ROUNDING, norm
    assert_close(m.weight.detach(), value)


def test_e35_state_follows_assignment(measured):
    check_assignment(ours)
    m = ours(nn.Linear(6, 6)).eval()
    assert not list(m.buffers())
    measured("assigned in eval: sigma as assigned; no u, v")


@torch_today
def test_e35_assignment_in_torch_today(measured):
    with pytest.raises(AssertionError) as error:
        check_assignment(torchs.spectral_norm)
    assert float(str(error.value).split()[0]) > 1.5
    m = torchs.spectral_norm(nn.Linear(6, 6)).eval()
    with torch.no_grad():
        m.weight = 20 * torch.eye(6)[torch.randperm(6)] + torch.randn(6, 6)
    measured(f"assigned in eval: sigma = {largest(m.weight):.1f}")
    assert largest(m.weight) > 3


def test_e35_a_matrix_outside_is_refused_when_assigned_and_projected_when_constrained(measured):
    m = ours(nn.Linear(4, 4))
    before = m.weight.detach().clone()
    with pytest.raises(constrained.InfeasibleError, match="violates the constraint by 4 "):
        m.weight = 5 * torch.eye(4)
    assert torch.equal(m.weight, before)
    m = nn.Linear(4, 4)
    m.weight.data = 5 * torch.eye(4)
    assert_close(ours(m).weight.detach(), torch.eye(4))
    measured("5 * I: an error when assigned, projected to I by constrain()")


# ------------------------------------------------------------------------------------ the zero


def check_zero(make):
    m = nn.Linear(3, 3, bias=False)
    nn.init.zeros_(m.weight)
    make(m)
    assert torch.equal(m.weight, torch.zeros(3, 3))
    m(torch.ones(1, 3)).sum().backward()
    gradients = [p.grad for p in m.parameters() if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert any((gradient != 0).all() for gradient in gradients)


def test_e35_zero_is_safe(measured):
    check_zero(ours)
    check_zero(lambda m: constrain(m, "weight", "weight_norm"))
    conv = nn.Conv2d(2, 2, 3)
    nn.init.zeros_(conv.weight)
    constrain(conv, "weight", "spectral_norm_conv")
    conv(torch.ones(1, 2, 5, 5)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in conv.parameters())
    measured("zero weight: 0, with a gradient")


@torch_today
def test_e35_zero_in_torch_today(measured):
    m = nn.Linear(3, 3)
    nn.init.zeros_(m.weight)
    torchs.spectral_norm(m)
    assert m.weight.isnan().all()
    measured("zero weight: NaN")


# ------------------------------------------------------------------------ every step of training


def largest_in_training(make, rate):
    """The largest norm that a forward pass sees in the first steps of training."""
    m = make(nn.Linear(32, 32, bias=False))
    optimizer = torch.optim.SGD(m.parameters(), lr=rate)
    target = torch.randn(32, 32)
    norms = []
    for _ in range(30):
        optimizer.zero_grad()
        weight = m.weight
        norms.append(largest(weight))
        (weight - target).square().sum().backward()
        optimizer.step()
    return max(norms)


def test_e35_the_bound_holds_at_every_step(measured):
    worst = max(largest_in_training(ours, rate) for rate in (0.01, 0.1, 1.0, 100.0))
    measured(f"largest in 30 steps: {worst:.4f}")
    assert worst <= 1 + ROUNDING


@torch_today
def test_e35_the_bound_in_training_in_torch_today(measured):
    worst = max(largest_in_training(torchs.spectral_norm, rate) for rate in (0.01, 0.1, 1.0, 100.0))
    measured(f"largest in 30 steps: {worst:.2f}")
    assert worst > 1.05
