"""E13: weight decay, clipping and noise collapse no constraint."""

import pytest
import torch
from torch import nn
from torch.nn.utils import (
    clip_grad_norm_,
    clip_grad_value_,
    parameters_to_vector,
    parametrizations,
    vector_to_parameters,
)

import constrained
from constrained import constrain

torch_today = pytest.mark.torch_today


def every_constraint(*, others_are_slow=False):
    """Each example of each constraint; optionally, all but the first are marked slow."""
    cases = [
        pytest.param(
            name,
            arguments,
            event,
            id=f"{name}-{i}",
            marks=[pytest.mark.slow] if others_are_slow and i else [],
        )
        for name in constrained.names()
        for i, (arguments, event) in enumerate(constrained.get(name).examples)
    ]
    return pytest.mark.parametrize(("name", "arguments", "event"), cases)


class Layer(nn.Module):
    """Two elements of a set, as one parameter."""

    def __init__(self, name, arguments, event):
        super().__init__()
        self.constraint = constrained.get(name)(**arguments)
        shape = event if self.constraint.event_dim is None else (2, *event)
        self.p = nn.Parameter(self.constraint.sample(shape))
        constrain(self, "p", self.constraint)
        self.weights = torch.randn(self.p.shape)

    def originals(self):
        return list(self.parametrizations.p.parameters())

    def check(self):
        """Check that the value is finite, in the set, and that some function has a gradient."""
        value = self.p
        assert torch.isfinite(value).all()
        assert self.constraint.contains(value.detach()).all()
        if not self.trains():
            # Outside of the set a projection may have the derivative zero. A step of any optimizer
            # moves the parameters back to where it is not.
            torch.optim.SGD(self.originals(), lr=0.0).step()
            assert self.trains()

    def trains(self):
        """Whether a function or its negative has a gradient: at a boundary one may be optimal."""
        found = self.is_a_point()
        for sign in (-1, 1):
            gradients = torch.autograd.grad(sign * (self.p * self.weights).sum(), self.originals())
            assert all(torch.isfinite(g).all() for g in gradients)
            for p, gradient in zip(self.originals(), gradients, strict=True):
                p.grad = gradient
            found = found or any((g != 0).any() for g in gradients)
        return found

    def is_a_point(self):
        dims = self.constraint.event_dim
        shape = tuple(self.p.shape)
        event = shape if dims is None else shape[len(shape) - dims :]
        return self.constraint.dimension(event) == 0


@every_constraint(others_are_slow=True)
@pytest.mark.parametrize("gradient", [torch.zeros_like, torch.randn_like], ids=["zero", "random"])
def test_e13_weight_decay(name, arguments, event, gradient):
    layer = Layer(name, arguments, event)
    optimizer = torch.optim.AdamW(layer.originals(), lr=0.1, weight_decay=0.5)
    for i in range(200):
        for p in layer.originals():
            p.grad = gradient(p)
        optimizer.step()
        if i in (0, 10, 199):
            layer.check()


@every_constraint(others_are_slow=True)
def test_e13_clipping(name, arguments, event):
    for clip in (lambda p: clip_grad_norm_(p, 1e-3), lambda p: clip_grad_value_(p, 1e-3)):
        layer = Layer(name, arguments, event)
        optimizer = torch.optim.SGD(layer.originals(), lr=0.1)
        for _ in range(20):
            optimizer.zero_grad()
            (layer.p * layer.weights * 1e6).sum().backward()
            clip(layer.originals())
            optimizer.step()
        layer.check()


@every_constraint()
def test_e13_noise(name, arguments, event):
    for scale in (1e-3, 1e-2, 1e-1, 1.0):
        layer = Layer(name, arguments, event)
        with torch.no_grad():
            for p in layer.originals():
                p.add_(scale * torch.randn_like(p))
        layer.check()


@every_constraint()
def test_e13_scaled_and_flipped_parameters(name, arguments, event):
    for factor in (0.5, 1e-3, 10.0, -1.0):
        layer = Layer(name, arguments, event)
        vector_to_parameters(factor * parameters_to_vector(layer.originals()), layer.originals())
        layer.check()


def norm_after_one_step(constrained_layer):
    optimizer = torch.optim.AdamW(constrained_layer.parameters(), lr=0.1, weight_decay=0.5)
    constrained_layer.weight.sum().backward()
    optimizer.step()
    return float(torch.linalg.matrix_norm(constrained_layer.weight.detach(), 2))


def test_e13_rectangular_orthogonal(measured):
    norm = norm_after_one_step(constrain(nn.Linear(5, 3), "weight", "orthogonal"))
    measured(f"largest singular value after one AdamW step: {norm:.6f}")
    assert abs(norm - 1) < 1e-5


@torch_today
def test_e13_rectangular_orthogonal_in_torch_today(measured):
    layer = parametrizations.orthogonal(
        nn.Linear(5, 3), orthogonal_map="householder", use_trivialization=False
    )
    norm = norm_after_one_step(layer)
    measured(f"largest singular value after one AdamW step: {norm:.6f}")
    assert norm == 0
