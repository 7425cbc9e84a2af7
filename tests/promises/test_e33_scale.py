"""E33: values stay orthogonal for coordinates of any size and after long training."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import orthogonal as torch_orthogonal

from tests.promises.catalogue import linear

MAPS = pytest.mark.parametrize("map", ["polar", "cayley", "exp"])
SHAPES = pytest.mark.parametrize("shape", [(32, 32), (48, 16), (16, 48)])
SCALES = (1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0, 1e3)


def defect(weight):
    W = weight.detach().double()
    W = W if W.shape[0] >= W.shape[1] else W.T
    return float((W.T @ W - torch.eye(W.shape[1])).abs().max())


def free(layer):
    return next(layer.parametrizations.weight.parameters())


@MAPS
@SHAPES
def test_e33_at_every_scale_of_the_coordinates(map, shape, measured):
    layer, worst = linear("orthogonal", {"map": map}, shape), 0.0
    direction = torch.randn(shape)
    for scale in SCALES:
        with torch.no_grad():
            free(layer).copy_(scale * direction)
        worst = max(worst, defect(layer.weight))
    assert worst <= 1e-5
    measured(f"{map}: {worst:.0e} at most")


@pytest.mark.torch_today
def test_e33_in_torch_today(measured):
    layer = torch_orthogonal(nn.Linear(32, 32, bias=False), orthogonal_map="matrix_exp")
    direction, errors = torch.randn(32, 32), []
    for scale in (1.0, 1e3):
        with torch.no_grad():
            layer.parametrizations.weight.original.copy_(scale * direction)
        errors.append(defect(layer.weight))
    assert errors[1] > 1e-4 and errors[1] > 10 * errors[0]
    measured(" and ".join(f"{e:.0e}" for e in errors) + " at scale 1 and 1000")


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
}


@pytest.mark.slow
@MAPS
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("shape", [(6, 6), (8, 4)])
def test_e33_after_ten_thousand_steps(map, optimizer, shape, measured):
    layer, worst, steps = linear("orthogonal", {"map": map}, shape), 0.0, 10_000
    stepper = OPTIMIZERS[optimizer](layer.parameters())
    targets = torch.randn(32, *shape)
    for i in range(steps):
        stepper.zero_grad()
        # The target changes at each step, so that the weight never converges.
        (layer.weight * targets[i % 32]).sum().backward()
        stepper.step()
        if i % 500 == 499:
            worst = max(worst, defect(layer.weight))
    assert worst <= 1e-5
    measured(f"{map}, {steps} steps of {optimizer}: {worst:.0e} at most")
