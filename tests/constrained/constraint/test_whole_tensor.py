"""Constraints whose element is the whole tensor: ``event_dim`` is None."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import constrained
from constrained import constrain, testing
from constrained.constraint.view import View
from tests import healthy


class UnitTensor(healthy.Constraint):
    """Tensors of a given length, whatever their dimensions.

    **Set**: {y : |y| = 1}, of dimension n - 1, closed.
    **Map**: v -> v / |v|, onto; the constant tensor where v = 0.
    **Right inverse**: the identity.
    **Reference**: none needed.
    """

    event_dim = None
    examples = (({}, (3,)), ({}, (2, 2)), ({}, (2, 1, 3)))
    expected_failures = dict.fromkeys(
        ("first_derivative:zero_params", "second_derivative:zero_params"),
        "no map onto the sphere is continuous at zero",
    )

    def forward(self, v):
        zero = (v == 0).all()
        safe = torch.where(zero, 1 + v, v / torch.where(zero, 1, v.detach().abs().amax()))
        return safe / torch.linalg.vector_norm(safe)

    def right_inverse(self, value):
        return value

    def violation(self, value):
        return (torch.linalg.vector_norm(value) - 1).abs()

    def project(self, value):
        return self.forward(value)

    def sample(self, shape, *, generator=None, dtype=None, device=None):
        return self.forward(torch.randn(shape, generator=generator, dtype=dtype, device=device))

    def dimension(self, shape):
        return torch.Size(shape).numel() - 1


@pytest.mark.slow
def test_all_laws_are_tried_on_elements_without_a_batch():
    trials = testing.trials(UnitTensor)
    assert {trial.case.batch for trial in trials} == {()}
    assert {trial.case.event for trial in trials} == {(3,), (2, 2), (2, 1, 3)}
    # The identity and repeated singular values need matrices.
    places = {trial.case.event_dim: set() for trial in trials}
    for trial in trials:
        places[trial.case.event_dim].add(trial.case.point)
    assert "eye" in places[2]
    assert "eye" not in places[1]
    laws = [law for law in testing.laws() if law is not testing.compiles]
    testing.check(UnitTensor, laws=laws)


def test_a_planted_fault_is_found():
    class Vacuous(UnitTensor):
        def violation(self, value):
            return value.sum() * 0

    with pytest.raises(AssertionError, match="expected some of the candidates to violate"):
        testing.check(Vacuous, laws=[testing.outsiders_are_rejected])


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 3, 4, 5)])
def test_one_constraint_serves_all_shapes(shape):
    constraint = UnitTensor()
    value = constraint.sample(shape)
    assert constraint.violation(value).shape == ()
    assert constraint.contains(value)
    assert constraint.violation(torch.full(shape, torch.nan)) == torch.inf
    assert constrained.tolerance(value, None) == constrained.tolerance(value, len(shape))


def test_in_a_model_and_its_report():
    model = nn.Sequential(nn.Linear(3, 2), nn.Conv1d(2, 2, 3))
    constrain(model, "**", UnitTensor())
    assert len(constrained.violations(model)) == 4
    assert max(constrained.violations(model).values()) < 1e-6
    with pytest.raises(constrained.InfeasibleError, match=r"violates the constraint by 1 \(at"):
        model[0].weight = torch.full((2, 3), 2 / 6**0.5)


def test_behind_a_view():
    view = View(UnitTensor(), "o i h w -> o (i h w)", (2, 3, 4, 5))
    assert view.dimension((2, 3, 4, 5)) == 119
    assert view.violation(torch.zeros(2, 3, 4, 5)) == 1
