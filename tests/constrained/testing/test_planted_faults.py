"""Each fault that a constraint can have is caught by a law, by name."""

from __future__ import annotations

import math
import random
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch.autograd import Function

from constrained import testing
from constrained.constraint import registry
from tests.healthy import NonNegative, PositiveDefinite, Sphere, Symmetric


class TransposedFactor(PositiveDefinite):
    def right_inverse(self, value):
        return super().right_inverse(value).mT


class DetachedGradient(Sphere):
    def forward(self, vector):
        return super().forward(vector).detach()


class HalfDetachedGradient(Sphere):
    def forward(self, vector):
        norm = torch.linalg.vector_norm(vector, dim=-1, keepdim=True).detach()
        return self.radius * vector / norm.clamp_min(1e-30)


class SlackOfTheWrongSign(NonNegative):
    def slack(self, value):
        return -super().slack(value)


class SinglePrecisionInside(Sphere):
    def forward(self, vector):
        return super().forward(vector.float()).to(vector.dtype)


class SinglePrecisionViolation(Symmetric):
    def violation(self, value):
        return super().violation(value.float()).to(value.dtype)


class StateWritten(Sphere):
    def right_inverse(self, value):
        self.last = value
        return super().right_inverse(value)


class CountsCalls(Sphere):
    def __init__(self, radius=1.0):
        super().__init__(radius)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, vector):
        self.calls += 1
        return super().forward(vector)


class InputWritten(NonNegative):
    def right_inverse(self, value):
        return value.clamp_(min=0)


class InputScaledAndRestored(Symmetric):
    """The bytes are the same afterwards, but autograd's version counter has moved."""

    def project(self, value):
        result = super().project(value.mul_(2)) / 2
        value.div_(2)
        return result


class DrawsFromTorch(Sphere):
    def right_inverse(self, value):
        torch.rand(())
        return super().right_inverse(value)


class SeedsNumpy(Sphere):
    def project(self, value):
        np.random.seed(0)
        return super().project(value)


class DrawsInTheConstructor(Sphere):
    def __init__(self, radius=1.0):
        super().__init__(radius)
        random.random()


class VacuousViolation(Symmetric):
    def violation(self, value):
        return super().violation(value) * 0


class SquaredViolation(Symmetric):
    def violation(self, value):
        return super().violation(value).square()


class OneViolationForTheBatch(Sphere):
    def violation(self, value):
        return super().violation(value).amax().expand(value.shape[:-1])


class UnstoredArgument(Sphere):
    def __init__(self, radius=1.0):
        super().__init__(radius)
        self.radius = 1.0


class MissingArgument(Sphere):
    def __init__(self, radius=1.0, eps=1e-3):
        super().__init__(radius)


class OverflowsAtLargeValues(Symmetric):
    """Half precision inside, where nothing but what is above 65504 shows."""

    def right_inverse(self, value):
        upper = super().right_inverse(value)
        return torch.where(upper.half().isinf(), torch.inf, upper)


class ReadsTheFirstElement(Sphere):
    def violation(self, value):
        result = super().violation(value)
        return result + 0 * result.flatten()[0]


class SaysWhatItDoesNotKeep(NonNegative):
    preserves = ("negative",)


class SquareOnTheHalfLine(NonNegative):
    def forward(self, free):
        return free.square()

    def right_inverse(self, value):
        return value.clamp_min(0).sqrt()


class SpectralFactor(PositiveDefinite):
    """Q f(diag) Q^T of a symmetric matrix: its gradient at equal eigenvalues lacks directions."""

    def forward(self, lower):
        vectors = torch.linalg.eigh(lower.detach() + lower.detach().mT).eigenvectors
        free = (vectors * ((lower + lower.mT) @ vectors)).sum(-2)
        return (vectors * free.exp().unsqueeze(-2)) @ vectors.mT

    def right_inverse(self, value):
        values, vectors = torch.linalg.eigh(value)
        return (vectors * (values.log() / 2).unsqueeze(-2)) @ vectors.mT


class AcceptsOutsiders(Symmetric):
    def check_member(self, value):
        self.check_tensor(value)


class AcceptsNaN(NonNegative):
    def check_tensor(self, value):
        self.check_shape(value.shape)


class AcceptsIntegers(NonNegative):
    def check_tensor(self, value):
        super().check_tensor(value if value.is_floating_point() else value.float())


class _WrongSecondDerivative(Function):
    @staticmethod
    def forward(vector):
        return vector / torch.linalg.vector_norm(vector, dim=-1, keepdim=True)

    @staticmethod
    def setup_context(ctx, inputs, output):
        # The output is saved without its history: what depends on it counts as constant.
        ctx.output = output.detach()
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, gradient):
        (vector,) = ctx.saved_tensors
        unit = ctx.output
        tangent = gradient - unit * (unit * gradient).sum(-1, keepdim=True)
        return tangent / torch.linalg.vector_norm(vector, dim=-1, keepdim=True)


class WrongSecondDerivative(Sphere):
    def forward(self, vector):
        return self.radius * _WrongSecondDerivative.apply(vector)


class WrongFirstDerivative(Symmetric):
    def forward(self, upper):
        value = super().forward(upper)
        return value + (2 * upper - (2 * upper).detach())


class _NoForwardMode(Function):
    @staticmethod
    def forward(ctx, upper):
        return upper.triu() + upper.triu(1).mT

    @staticmethod
    def backward(ctx, gradient):
        return gradient.triu() + gradient.tril(-1).mT


class NoForwardMode(Symmetric):
    def forward(self, upper):
        return _NoForwardMode.apply(upper)


class BatchSharesANorm(Sphere):
    def forward(self, vector):
        value = super().forward(vector)
        return value if vector.ndim == 1 else value.roll(1, 0)

    def right_inverse(self, value):
        return value if value.ndim == 1 else value.roll(-1, 0)


class BranchesOnValues(Sphere):
    def forward(self, vector):
        if float(vector.abs().amax()) > 1e30:
            vector = vector / 1e30
        return super().forward(vector)


class AssumesContiguity(Sphere):
    def project(self, value):
        memory = value.as_strided(value.shape, torch.empty(value.shape).stride())
        return super().project(memory.nan_to_num())


class ProjectsOutside(Sphere):
    def project(self, value):
        return 1.01 * super().project(value)


class ProjectsFar(Symmetric):
    """Members, and members stay: but the lower triangle of an outsider is thrown away."""

    def project(self, value):
        return value.triu() + value.triu(1).mT


class MovesInteriorElements(PositiveDefinite):
    def project(self, value):
        value = super().project(value)
        return value + 1e-6 * torch.eye(value.shape[-1], dtype=value.dtype)


class NaNAtZero(Sphere):
    def forward(self, vector):
        return self.radius * vector / torch.linalg.vector_norm(vector, dim=-1, keepdim=True)


class NaNGradientAtZero(Sphere):
    def forward(self, vector):
        norm = torch.linalg.vector_norm(vector, dim=-1, keepdim=True)
        first = torch.eye(vector.shape[-1], dtype=vector.dtype)[0]
        return self.radius * torch.where(norm == 0, first, vector / norm)


class OverflowsAtLargeParams(Sphere):
    def forward(self, vector):
        return self.radius * torch.softmax(vector.exp().square(), -1).sqrt()

    def right_inverse(self, value):
        return value


class DtypeChanged(Sphere):
    # Behind the guard of the base class, which would put the dtype right.
    def __call__(self, vector):
        return super().__call__(vector).double()


class ShapeChanged(Symmetric):
    def forward(self, upper):
        return super().forward(upper).unsqueeze(0)


class WrongDimension(Symmetric):
    def dimension(self, shape):
        return shape[-1] * (shape[-1] - 1) // 2


class FloatDimension(Symmetric):
    def dimension(self, shape):
        return shape[-1] * (shape[-1] + 1) / 2


class RandomForward(Sphere):
    def forward(self, vector):
        return super().forward(vector + 1e-9 * torch.rand_like(vector))


class RemembersTheLastValue(Sphere):
    _memory: ClassVar[dict] = {}

    def forward(self, vector):
        value = super().forward(vector)
        previous = self._memory.get(vector.shape, value.detach())
        self._memory[vector.shape] = value.detach()
        return value + 1e-7 * (previous - value).detach()


class ShapesDependOnValues(Symmetric):
    def right_inverse(self, value):
        if bool((value == 0).all()):
            return value.new_zeros((*value.shape[:-2], 1, 1))
        return super().right_inverse(value)


class HasLambda(Sphere):
    def __init__(self, radius=1.0):
        super().__init__(radius)
        self.scale = lambda vector: self.radius * vector


class HasAParameter(Sphere):
    def __init__(self, radius=1.0):
        super().__init__(radius)
        self.gain = torch.nn.Parameter(torch.ones(()))


class StateOutsideOfTheStateDict(Sphere):
    _made = 0

    def __init__(self, radius=1.0):
        super().__init__(radius)
        type(self)._made += 1
        self.signs = torch.tensor(-1.0) if self._made % 2 else torch.tensor(1.0)

    def forward(self, vector):
        return self.signs.to(vector.dtype) * super().forward(vector)

    def right_inverse(self, value):
        return self.signs.to(value.dtype) * value


class LongRepr(Sphere):
    def __repr__(self):
        return "LongRepr(\n" + "radius=1.0, " * 30 + ")"


class SpecThatJSONCannotHold(Sphere):
    examples = (({"radius": math.inf}, (4,)),)


class IgnoresTheGenerator(Sphere):
    def sample(self, shape, *, generator=None, dtype=None, device=None):
        return super().sample(shape, dtype=dtype, device=device)


class SamplesOutsiders(Sphere):
    def sample(self, shape, *, generator=None, dtype=None, device=None):
        return torch.randn(shape, generator=generator, dtype=dtype, device=device)


class Undocumented(Sphere):
    """Vectors of a given length."""


class UnknownExemption(Sphere):
    expected_failures: ClassVar = {
        **Sphere.expected_failures,
        "no_such_law": "a reason of several words",
    }


class ReadsMetaTensors(Sphere):
    def right_inverse(self, value):
        return value / float(value.abs().amax()) if value.numel() else value


class DoesNotCompile(Sphere):
    def forward(self, vector):
        np.asarray([print(end="")])
        torch._dynamo.graph_break()
        return super().forward(vector)


class CanonicalMovesTheElement(Symmetric):
    def canonical(self, upper):
        return (upper.mT,)


class SaysThatItIsAmbient(Symmetric):
    value_index = 0


class PullbackOfAnother(Symmetric):
    def pullback(self, value, gradient, upper):
        return (gradient,)


class ThinPullbackOfAnother(Symmetric):
    def thin_pullback(self, value, left, right, upper):
        return (left.mT @ right,)


class FactorsOfAnother(Symmetric):
    def factors(self, upper):
        return upper, upper


class CanonicalWrites(NonNegative):
    def canonical(self, free):
        return (free.abs_(),)


class AutocastOn(Symmetric):
    """Behind the guard of the base class, which turns autocast off."""

    def __call__(self, upper):
        value = super().__call__(upper)
        return (value @ torch.eye(value.shape[-1], dtype=value.dtype)).to(upper.dtype)


class LeavesTheSetWhenTrained(Sphere):
    """Right at the start, and off the set when the parameters get longer than the radius."""

    def forward(self, vector):
        norm = torch.linalg.vector_norm(vector, dim=-1, keepdim=True)
        return torch.where((norm - self.radius).abs() < 1e-3, vector, super().forward(vector))


class HalfPrecisionInside(Symmetric):
    def forward(self, upper):
        return super().forward(upper.half().float() if upper.dtype == torch.float32 else upper)


class WorksInOneDtype(Symmetric):
    def __init__(self):
        super().__init__()
        self.register_buffer("weights", torch.eye(3, dtype=torch.float64) / 2)

    def project(self, value):
        return self.weights @ (value + value.mT)


class CopiesLoseTheArgument(Sphere):
    def __deepcopy__(self, memo):
        return type(self)()


class StartsAtTheBoundary(PositiveDefinite):
    def admit(self, value, share):
        return self.project(value)


class SaysNothingOfTheBoundary(PositiveDefinite):
    def inwards(self, value, share):
        return value


class MovesMembersAtTheStart(Sphere):
    def start(self, value):
        return self.admit(value, 0.02)

    def admit(self, value, share):
        return self.project(value + share)


class ReflectsVectors(Sphere):
    def tangent(self, value, vector):
        along = (value * vector).sum(-1, keepdim=True) / self.radius**2
        return vector - 2 * along * value


class TakesAllVectorsForTangents(Sphere):
    def tangent(self, value, vector):
        return vector.clone()


class TangentAtAnotherPoint(Sphere):
    def tangent(self, value, vector):
        return torch.cat((torch.zeros_like(vector[..., :1]), vector[..., 1:]), -1)


class SmoothSphere(Sphere):
    """A healthy one that optimizers can walk on."""

    def tangent(self, value, vector):
        return vector - (value * vector).sum(-1, keepdim=True) / self.radius**2 * value

    def steepest(self, value, gradient):
        tangent = self.tangent(value, gradient)
        return -self.radius * torch.nn.functional.normalize(tangent, dim=-1, eps=0)


class GradientOfAnotherMetric(SmoothSphere):
    def riemannian_gradient(self, value, gradient):
        return 2 * self.tangent(value, gradient)


class MovesStraightAhead(SmoothSphere):
    def move(self, value, vector):
        return value + vector


class TransportsNothing(SmoothSphere):
    def transport(self, vector, new):
        return vector


class SteepestOutOfTheSet(SmoothSphere):
    def steepest(self, value, gradient):
        return -value.norm(dim=-1, keepdim=True) * torch.nn.functional.normalize(gradient, dim=-1)


class SteepestInOneEntry(SmoothSphere):
    def steepest(self, value, gradient):
        first = torch.nn.functional.pad(gradient[..., :1], (0, gradient.shape[-1] - 1))
        return super().steepest(value, first)


class RetractsMembers(NonNegative):
    def retract(self, value):
        return value.clamp_min(0) + 0.1


class ClimbsAlongGradients(NonNegative):
    def admissible(self, value, gradient):
        return -gradient


class GradientsPointOutwards(NonNegative):
    def admissible(self, value, gradient):
        return gradient


class ProjectsWeights(NonNegative):
    def project_scaled(self, value, scale):
        return (value * scale).clamp_min(0)


# Fault, and a law that finds it: one of them, where several do.
FAULTS = [
    (TransposedFactor, "right_inverse_inverts"),
    (DetachedGradient, "gradient_is_finite"),
    (DetachedGradient, "first_derivative"),
    (HalfDetachedGradient, "first_derivative"),
    (SinglePrecisionInside, "right_inverse_inverts"),
    (SinglePrecisionInside, "lands_in_the_set"),
    (SinglePrecisionViolation, "violation_grows"),
    (StateWritten, "writes_nothing"),
    (CountsCalls, "writes_nothing"),
    (InputWritten, "writes_nothing"),
    (InputScaledAndRestored, "writes_nothing"),
    (DrawsFromTorch, "draws_nothing"),
    (SeedsNumpy, "draws_nothing"),
    (DrawsInTheConstructor, "draws_nothing"),
    (VacuousViolation, "violation_separates"),
    (VacuousViolation, "violation_grows"),
    (VacuousViolation, "outsiders_are_rejected"),
    (SquaredViolation, "violation_grows"),
    (OneViolationForTheBatch, "batch_is_a_loop"),
    (OneViolationForTheBatch, "outsiders_are_rejected"),
    (UnstoredArgument, "arguments_are_stored"),
    (MissingArgument, "arguments_are_stored"),
    (SquareOnTheHalfLine, "no_dead_directions"),
    (SpectralFactor, "no_dead_directions"),
    (AcceptsOutsiders, "outsiders_are_rejected"),
    (AcceptsNaN, "malformed_is_rejected"),
    (AcceptsIntegers, "malformed_is_rejected"),
    (WrongSecondDerivative, "second_derivative"),
    (WrongFirstDerivative, "first_derivative"),
    (NoForwardMode, "forward_mode"),
    (NoForwardMode, "vmap_is_a_loop"),
    (BatchSharesANorm, "batch_is_a_loop"),
    (BranchesOnValues, "vmap_is_a_loop"),
    (AssumesContiguity, "strides_do_not_matter"),
    (ProjectsOutside, "projects"),
    (ProjectsFar, "nearest"),
    (MovesInteriorElements, "projects"),
    (NaNAtZero, "lands_in_the_set"),
    (NaNGradientAtZero, "gradient_is_finite"),
    (OverflowsAtLargeParams, "lands_in_the_set"),
    (DtypeChanged, "lands_in_the_set"),
    (ShapeChanged, "lands_in_the_set"),
    (WrongDimension, "no_dead_directions"),
    (FloatDimension, "dimension_counts"),
    (RandomForward, "repeats"),
    (RandomForward, "draws_nothing"),
    (RemembersTheLastValue, "repeats"),
    (ShapesDependOnValues, "right_inverse_inverts"),
    (HasLambda, "copies_are_equal"),
    (HasAParameter, "state_dict_restores"),
    (StateOutsideOfTheStateDict, "state_dict_restores"),
    (SpecThatJSONCannotHold, "spec_rebuilds"),
    (LongRepr, "repr_is_short"),
    (IgnoresTheGenerator, "samples_are_reproducible"),
    (SamplesOutsiders, "members_are_accepted"),
    (Undocumented, "documented"),
    (UnknownExemption, "documented"),
    (ReadsMetaTensors, "meta_tensors_pass"),
    (DoesNotCompile, "compiles"),
    (CanonicalMovesTheElement, "canonical_keeps_the_element"),
    (CanonicalWrites, "canonical_keeps_the_element"),
    (SaysThatItIsAmbient, "canonical_keeps_the_element"),
    (FactorsOfAnother, "factors_give_the_element"),
    (PullbackOfAnother, "pullback_is_the_gradient"),
    (ThinPullbackOfAnother, "thin_pullback_is_the_gradient"),
    (AutocastOn, "autocast_changes_nothing"),
    (LeavesTheSetWhenTrained, "training_stays_in_the_set"),
    (HalfPrecisionInside, "agrees_with_double"),
    (WorksInOneDtype, "moves_between_dtypes"),
    (CopiesLoseTheArgument, "copies_are_equal"),
    (CopiesLoseTheArgument, "constrain_keeps_a_member"),
    (StateOutsideOfTheStateDict, "checkpoints_restore"),
    (SquareOnTheHalfLine, "adam_reaches_the_optimum"),
    (OverflowsAtLargeValues, "graded_members_return"),
    (ReadsTheFirstElement, "empty_batches_pass"),
    (SaysWhatItDoesNotKeep, "keeps_what_it_says"),
    (StartsAtTheBoundary, "every_start_trains"),
    (SaysNothingOfTheBoundary, "flat_members_are_told"),
    (MovesMembersAtTheStart, "members_stay"),
    (SlackOfTheWrongSign, "slack_is_not_negative"),
    (ReflectsVectors, "tangent_is_a_projection"),
    (TakesAllVectorsForTangents, "tangent_space_has_the_dimension"),
    (TangentAtAnotherPoint, "tangents_lead_along_the_set"),
    (GradientOfAnotherMetric, "gradients_represent_derivatives"),
    (MovesStraightAhead, "moves_stay_in_the_set"),
    (TransportsNothing, "transports"),
    (SteepestOutOfTheSet, "steepest_directions_are_tangent"),
    (SteepestInOneEntry, "steepest_directions_are_steepest"),
    (RetractsMembers, "retracts"),
    (ClimbsAlongGradients, "admissible_gradients_descend"),
    (GradientsPointOutwards, "admissible_gradients_vanish"),
    (ProjectsWeights, "scaled_projection_is_nearest"),
]


def broken(cls, law, fast=False):
    """Whether some case of a class breaks a law; of those that `make test` tries if ``fast``."""
    for trial in testing.trials(cls, [getattr(testing, law)]):
        if fast and trial.is_slow and trial.effort != "compiler":
            continue
        if trial.exemption:
            continue
        try:
            trial.run()
        except AssertionError:
            return True
    return False


@pytest.mark.parametrize(("cls", "law"), FAULTS, ids=lambda x: getattr(x, "__name__", x))
def test_fault_is_caught(cls, law):
    assert broken(cls, law, fast=True)
    (healthy,) = cls.__bases__
    assert not broken(healthy, law)


def test_a_generator_that_is_seeded_as_it_was_before_is_seen():
    np.random.seed(0)
    before = np.random.get_state()[1].tolist()
    assert broken(SeedsNumpy, "draws_nothing")
    # And the law leaves the generators of others as they are.
    assert np.random.get_state()[1].tolist() == before


def test_every_law_catches_a_fault():
    caught = {law for _, law in FAULTS}
    assert caught == {law.__name__ for law in testing.laws()}


def test_messages_name_the_case_the_expectation_and_what_was_found():
    with pytest.raises(AssertionError) as caught:
        testing.check(VacuousViolation, laws=[testing.violation_separates])
    lines = str(caught.value).splitlines()
    assert lines[0] == "4 broken laws:"
    assert lines[1].startswith(
        "violation_separates: VacuousViolation()-3x3-float32: member + 1e-2 * randn is "
    )
    assert lines[1].endswith("expected a violation, found 0.0.")


def test_an_exemption_that_nothing_needs_is_found():
    class Boastful(Sphere):
        expected_failures: ClassVar = {
            **Sphere.expected_failures,
            "projects": "not needed at all",
            "typo": "no such law",
        }

    assert testing.stale_exemptions(Boastful) == ["projects", "typo"]


def test_planted_faults_do_not_enter_the_registry():
    assert not {registry.get(name) for name in registry.names()} & {cls for cls, _ in FAULTS}
