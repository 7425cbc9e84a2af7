"""Which cases of the laws `make test` tries and which `make test-slow`, and how a failure reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch

from constrained import testing
from constrained.testing.faults import grouped
from tests.conftest import is_chosen

#: Laws that train, for up to a thousand steps on each case: half of the time that all laws take. No
#: planted fault is found by them alone.
TRAINING = {"adam_reaches_the_optimum", "training_stays_in_the_set"}

#: The share of the classes on which these are tried with the tests that take seconds.
TRAINED = 1 / 3


def arguments(case: testing.Case) -> str:
    """A class with its arguments, as it begins the name of a test."""
    alike = {"event": (), "batch": (), "dtype": torch.float32, "point": None}
    return str(dataclasses.replace(case, **alike)).removesuffix("-scalar-float32")


def together(all_trials: Iterable[testing.Trial]) -> Iterator[Any]:
    """The trials as tests: one for each law and class, or class with arguments if the law is long.

    The fast tests have those that are not `Trial.is_slow`; of the laws in `TRAINING` on a share of
    the classes. All others are in slow tests.
    """
    found: dict[tuple[str, bool], list[testing.Trial]] = {}
    for trial in all_trials:
        law, name = trial.law.__name__, trial.case.cls.name or trial.case.cls.__name__
        is_left_out = law in TRAINING and not is_chosen(name, TRAINED, seed=0)
        given = name if trial.effort == "short" else arguments(trial.case)
        found.setdefault((f"{given}-{law}", trial.is_slow or is_left_out), []).append(trial)
    for (key, is_slow), trials in found.items():
        name = f"{key}-others" if is_slow and (key, False) in found else key
        yield pytest.param(trials, id=name, marks=[pytest.mark.slow] if is_slow else [])


def summary(broken: list[tuple[testing.Trial, AssertionError]], tried: int) -> str:
    """What is wrong, in a line for each fault, and below it the cases that have it."""
    law = broken[0][0].law
    lines = [f"{law.__name__} is broken in {len(broken)} of {tried} cases: {first_line(law)}"]
    for fault in grouped(broken):
        lines += [f"  {fault.sentence}", *(f"    {case}" for case in fault.cases)]
    return "\n".join(lines)


def first_line(law: Any) -> str:
    """What a law says of itself, in short."""
    return (law.__doc__ or "").strip().splitlines()[0]
