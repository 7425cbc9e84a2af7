"""Every law on every registered constraint, and on the five of `tests/healthy.py`."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch

from constrained import testing
from constrained.constraint import registry
from tests import healthy
from tests.constraints.law_cases import TRAINING, arguments, summary, together

HEALTHY = [
    healthy.Sphere,
    healthy.Symmetric,
    healthy.NonNegative,
    healthy.PositiveDefinite,
    healthy.Hermitian,
]
CLASSES = [*map(registry.get, registry.names()), *HEALTHY]
TRIALS = [trial for cls in CLASSES for trial in testing.trials(cls)]


@pytest.mark.parametrize("trials", [*together(TRIALS)])
def test_law(trials):
    tried = [trial for trial in trials if not trial.exemption]
    if not tried:
        pytest.skip(trials[0].exemption)
    broken = []
    for trial in tried:
        try:
            trial.run()
        except AssertionError as error:
            broken.append((trial, error))
    if broken:
        # Where in the law it failed says little beside the sentence: no traceback.
        pytest.fail(summary(broken, len(tried)), pytrace=False)


def test_every_trial_is_in_a_test():
    in_tests = [str(trial) for parameter in together(TRIALS) for trial in parameter.values[0]]
    assert sorted(in_tests) == sorted(map(str, TRIALS))


def test_the_fast_tests_try_every_example_in_every_dtype_and_with_every_batch():
    for cls in CLASSES:
        trials = testing.trials(cls, [testing.lands_in_the_set])
        chosen = [trial for trial in trials if not trial.is_slow]
        for level in ("dtype", "batch"):
            of_all, of_chosen = (
                {(arguments(t.case), t.case.event, getattr(t.case, level)) for t in some}
                for some in (trials, chosen)
            )
            assert of_chosen == of_all
        assert len(chosen) < len(trials) or len({t.case.batch for t in trials}) == 1


def test_a_failure_is_a_line_for_each_fault_and_the_cases_below_it():
    class Broken(healthy.Symmetric):
        def violation(self, value):
            return super().violation(value) * 0

    broken = []
    for trial in testing.trials(Broken, [testing.violation_separates]):
        with pytest.raises(AssertionError) as caught:
            trial.run()
        broken.append((trial, caught.value))
    lines = re.sub(r"0\.0\d+", "0.02", summary(broken, 4)).splitlines()
    assert lines[0].startswith("violation_separates is broken in 4 of 4 cases: ")
    said = "  member + 1e-2 * randn is 0.02 away from its projection: expected a violation, found"
    assert lines[1:] == [
        f"{said} 0.0.",
        "    Broken()-3x3-float32",
        "    Broken()-batch2-3x3-float32",
        "    Broken()-3x3-float64",
        "    Broken()-batch2-3x3-float64",
    ]


@pytest.mark.parametrize(
    "cls",
    [
        pytest.param(cls, marks=[pytest.mark.slow] if TRAINING & set(cls.expected_failures) else [])
        for cls in CLASSES
    ],
    ids=lambda cls: cls.name or cls.__name__,
)
def test_exemptions_are_needed(cls):
    assert not testing.stale_exemptions(cls)


def test_the_registry_holds_the_catalogue():
    assert "orthogonal" in registry.names()


def test_every_law_is_public_and_documented():
    for law in testing.laws():
        assert getattr(testing, law.__name__) is law
        assert law.__name__ in testing.__all__
        assert law.__doc__


def test_ids_are_unique():
    ids = [str(trial) for trial in TRIALS]
    assert len(set(ids)) == len(ids)


def test_importing_constrained_imports_no_laws():
    code = "import constrained, sys; sys.exit('constrained.testing' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_check_of_a_class_returns_what_was_left_out():
    left_out = testing.check(healthy.Sphere, laws=[testing.first_derivative])
    assert [str(trial) for trial in left_out] == [
        "Sphere()-4-float64-zero_params-first_derivative",
        "Sphere(radius=3.0)-5-float64-zero_params-first_derivative",
    ]


def test_check_of_an_instance_needs_a_shape():
    laws = [testing.lands_in_the_set, testing.right_inverse_inverts]
    assert testing.check(healthy.Sphere(2.0), event=(7,), laws=laws) == []
    with pytest.raises(TypeError, match="event="):
        testing.check(healthy.Sphere(2.0))
    with pytest.raises(TypeError, match="event="):
        testing.check(healthy.Sphere, event=(7,))


def test_laws_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    testing.check(healthy.Symmetric, laws=[testing.samples_are_reproducible, testing.projects])
    assert torch.equal(torch.get_rng_state(), before)
