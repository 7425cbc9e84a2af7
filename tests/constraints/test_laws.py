"""Every law on every entry of the registry, and on the healthy constraints of these tests."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from constrained import testing
from constrained.constraint import registry
from tests import healthy

HEALTHY = [
    healthy.Sphere,
    healthy.Symmetric,
    healthy.NonNegative,
    healthy.PositiveDefinite,
    healthy.Hermitian,
]
CLASSES = [*map(registry.get, registry.names()), *HEALTHY]
TRIALS = [trial for cls in CLASSES for trial in testing.trials(cls)]

#: They take up to a thousand steps for each example.
TRAINING = {"adam_reaches_the_optimum", "training_stays_in_the_set"}


def together() -> Iterator[Any]:
    """The trials of each law on each class: of all arguments, shapes, dtypes, batches and points.

    Laws that are not short make a test for each choice of arguments: for all its shapes, dtypes,
    batches and points.
    """
    found: dict[tuple[str, str, bool], list[testing.Trial]] = {}
    for trial in TRIALS:
        alike = {"event": (), "batch": (), "dtype": torch.float32, "point": None}
        arguments = str(dataclasses.replace(trial.case, **alike)).removesuffix("-scalar-float32")
        cls = trial.case.cls
        name = arguments if trial.effort != "short" else cls.name or cls.__name__
        found.setdefault((name, trial.law.__name__, trial.is_slow), []).append(trial)
    for (name, law, is_slow), trials in found.items():
        marks = [pytest.mark.slow] if is_slow else []
        yield pytest.param(trials, id=f"{name}-{law}", marks=marks)


@pytest.mark.parametrize("trials", [*together()])
def test_law(trials):
    tried = [trial for trial in trials if not trial.exemption]
    if not tried:
        pytest.skip(trials[0].exemption)
    broken = []
    for trial in tried:
        try:
            trial.run()
        except AssertionError as error:
            broken.append(error)
    if broken:
        raise ExceptionGroup(f"{len(broken)} of {len(tried)} trials: {broken[0]}", broken)


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
