"""Constraints that remember something from step to step, when the dtype or device changes."""

import pytest
import torch
from torch import nn

from constrained import constrain, get, names, violations

EVERY = [
    *((name, *example) for name in names() for example in get(name).examples),
    # Large enough for the singular vectors to be kept, on both sides and on one.
    ("spectral_norm", {"bound": 0.5}, (70, 70)),
    ("spectral_norm", {"bound": 0.5}, (8, 6)),
    ("spectral_norm", {"bound": 0.5, "map": "scale"}, (70, 70)),
    ("chain", {"parts": ["symmetric", "spectral_norm"]}, (40, 40)),
    ("product", {"parts": ["spectral_norm(map='scale')", "sphere"], "dim": -2}, (20, 40)),
]


def train(module, make):
    optimizer = make(module.parameters(), lr=0.001)
    for _ in range(3):
        optimizer.zero_grad()
        (module.x - 2).abs().square().sum().backward()
        optimizer.step()
    worst = max(violations(module).values())
    dtype = module.x.dtype
    assert worst <= (0.1 if dtype is torch.bfloat16 else 1e-3), f"{worst} in {dtype}"


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize(("name", "arguments", "shape"), EVERY)
def test_a_constraint_trains_on_in_another_dtype(name, arguments, shape, make):
    torch.manual_seed(0)
    constraint = get(name)(**arguments)
    module = constrain(nn.ParameterDict({"x": torch.randn(shape)}), "x", constraint, init="inside")
    train(module, make)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float32):
        module.to(dtype)
        train(module, make)
    state = {k: v.clone() for k, v in module.state_dict().items()}
    module.to("meta").to_empty(device="cpu").load_state_dict(state)
    train(module, make)


class Layer(nn.Linear):
    """A linear layer that is applied without reading its weight."""

    def descend(self, steps):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05)
        for _ in range(steps):
            optimizer.zero_grad()
            self(torch.randn(3, self.in_features, dtype=self.bias.dtype)).square().mean().backward()
            yield optimizer


@pytest.mark.parametrize("size", [8, 70])
@pytest.mark.parametrize("when", ["after a step", "before a step"])
@pytest.mark.parametrize("bound", [0.5, 1.0])
def test_a_spectral_norm_layer_trains_on_in_another_dtype(size, when, bound):
    torch.manual_seed(0)
    layer = constrain(Layer(size, size), "weight", f"spectral_norm(bound={bound})", init="inside")
    for dtype in (torch.float64, torch.float32, torch.float64):
        for optimizer in layer.descend(3):
            optimizer.step()
        if when == "before a step":
            next(layer.descend(1))
        layer.to(dtype)
        if when == "before a step":
            torch.optim.SGD(layer.parameters(), lr=0.05).step()
        assert float(violations(layer)["weight"]) < 1e-3


def test_a_plain_checkpoint_of_a_map_that_is_set_on_a_class_is_not_made_canonical_for_the_old_one():
    sphere = get("sphere")
    cls = type("Shifted", (sphere,), {"right_inverse": lambda self, value: 2 * value - 1})
    cls.forward = lambda self, x: sphere.forward(self, x + 1)
    layer = constrain(nn.Linear(4, 4), "weight", cls())
    value = sphere().sample((4, 4))
    layer.load_state_dict({"weight": value, "bias": torch.zeros(4)})
    torch.testing.assert_close(layer.weight.detach(), value)
