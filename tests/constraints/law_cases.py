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

#: Laws that take long: with the tests that take seconds they are tried on the first arguments of
#: each class.
LONG = TRAINING | {
    "every_start_trains",
    "first_derivative",
    "forward_mode",
    "gradient_is_finite",
    "projects",
    "second_derivative",
}

#: A compiler takes long for the smallest matrix: these are tried with the slow tests alone.
SLOW = {"compiles"}


def diagonal(trials: list[testing.Trial]) -> set[int]:
    """Which trials of one law on one class are tried with the tests that take seconds.

    A law has a case for every combination of example, dtype, batch and point. The fast tests try
    each example in each dtype and with each batch, but not in each dtype with each batch. Which
    dtype goes with which batch changes from one example to the next, as on the diagonals of a
    square, so that two examples have all pairs. `test_planted_faults.py` holds that every planted
    fault is still found: of 415 pairs of a fault and a law that finds it, 413 are left.

    Returns:
        The indices of the chosen ones.
    """
    examples: dict[str, list[tuple[int, testing.Case]]] = {}
    for i, trial in enumerate(trials):
        example = f"{trial.case.kwargs} {trial.case.event}"
        examples.setdefault(example, []).append((i, trial.case))
    chosen = set()
    for number, cases in enumerate(examples.values()):
        batches = list(dict.fromkeys(case.batch for _, case in cases))
        dtypes = list(dict.fromkeys(case.dtype for _, case in cases))
        period = min(len(batches), len(dtypes))
        chosen |= {
            i
            for i, case in cases
            if (dtypes.index(case.dtype) - batches.index(case.batch) + number) % period == 0
        }
    return chosen


def arguments(case: testing.Case) -> str:
    """A class with its arguments, as it begins the name of a test."""
    alike = {"event": (), "batch": (), "dtype": torch.float32, "point": None}
    return str(dataclasses.replace(case, **alike)).removesuffix("-scalar-float32")


def together(all_trials: Iterable[testing.Trial]) -> Iterator[Any]:
    """The trials as tests: one for each law and class, or class with arguments if the law is long.

    The fast tests try the `diagonal` of each law and class: laws in `LONG` on the first arguments,
    those in `TRAINING` on a share of the classes. All other trials are in slow tests.
    """
    of_law: dict[tuple[type, str], list[testing.Trial]] = {}
    for trial in all_trials:
        of_law.setdefault((trial.case.cls, trial.law.__name__), []).append(trial)
    found: dict[tuple[str, bool], list[testing.Trial]] = {}
    for (cls, law), trials in of_law.items():
        name, first, chosen = cls.name or cls.__name__, arguments(trials[0].case), diagonal(trials)
        never = law in SLOW or (law in TRAINING and not is_chosen(name, TRAINED, seed=0))
        for i, trial in enumerate(trials):
            given = arguments(trial.case)
            is_slow = never or i not in chosen or (law in LONG and given != first)
            key = f"{given if law in LONG | SLOW else name}-{law}"
            found.setdefault((key, is_slow), []).append(trial)
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
