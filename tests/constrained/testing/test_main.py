"""``python -m constrained.testing``: the laws on one constraint, from a shell."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from constrained import get, testing
from constrained.testing.__main__ import app
from constrained.testing.faults import grouped
from tests.healthy import Sphere

FAULTY = "tests.constrained.testing.test_planted_faults:VacuousViolation"


def run(*arguments):
    return CliRunner().invoke(app, list(arguments))


def test_a_constraint_of_the_registry():
    found = run("sphere", "--law", "lands_in_the_set", "--law", "repr_is_short")
    assert found.exit_code == 0
    assert found.output.startswith("all laws hold (laws: 2, cases: ")


def test_a_fault_is_one_line_with_its_cases():
    found = run(FAULTY, "--law", "violation_separates")
    assert found.exit_code == 1
    fault, *cases, verdict = found.output.splitlines()
    assert fault.startswith("x violation_separates: member + 1e-2 * randn is 0.0")
    assert cases == [
        f"    VacuousViolation()-{case}"
        for case in ("3x3-float32", "batch2-3x3-float32", "3x3-float64", "batch2-3x3-float64")
    ]
    assert verdict.startswith("faults: 1 (laws: 1, cases: 4, ")


def test_different_sentences_are_different_faults():
    (first, second, *_) = testing.trials(Sphere, [testing.projects])
    errors = [
        AssertionError(f"{t.case}: projects: {what}")
        for t, what in ((first, "found 1e-3"), (second, "found [2.5, inf]"), (second, "no number"))
    ]
    found = grouped(zip((first, second, second), errors, strict=True))
    assert [(f.sentence, len(f.cases)) for f in found] == [
        ("projects: found 1e-3", 2),
        ("projects: no number", 1),
    ]


def test_declared_failures_are_named():
    found = run("sphere", "--law", "second_derivative")
    assert found.exit_code == 0
    reason = get("sphere").expected_failures["second_derivative:zero_params"]
    assert f"- second_derivative is declared not to hold (cases: 4): {reason}" in found.output


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["sfere"], "there is no constraint 'sfere'. The nearest names are sphere"),
        (["sphere", "--law", "project"], "no law 'project'. The nearest names are projects"),
        (
            ["tests.healthy:Spere"],
            "tests.healthy has no constraint 'Spere'. The nearest names are ",
        ),
        (["nowhere.at_all:Sphere"], "'nowhere.at_all' cannot be imported"),
        (["constrained:Constraint"], "no examples"),
    ],
)
def test_a_name_that_is_unknown(arguments, sentence):
    found = run(*arguments)
    assert found.exit_code == 2
    assert sentence in found.output


def test_slow_cases_are_left_out_unless_asked_for():
    trials = testing.trials(get("sphere"))
    slow = [t for t in trials if t.is_slow]
    assert {t.law.__name__ for t in slow} >= {"compiles", "adam_reaches_the_optimum"}
    short = [t for t in trials if t.effort == "short"]
    # Each example in each dtype and with each batch.
    for level in ("kwargs", "event", "dtype", "batch"):
        fast = {(t.law, str(getattr(t.case, level))) for t in short if not t.is_slow}
        assert fast == {(t.law, str(getattr(t.case, level))) for t in short}
    assert any(t.law.__name__ == "adam_reaches_the_optimum" for t in trials if not t.is_slow)


def test_as_a_module():
    arguments = ["-m", "constrained.testing", "sphere", "--law", "repr_is_short"]
    found = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert "all laws hold" in found.stdout
