"""Broken laws grouped by what is wrong: one fault may show in many cases."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from constrained.testing.case import Case
from constrained.testing.runner import Trial

#: A number in a message: the same fault gives another one in each case.
_NUMBER = r"[-+]?\b(?:\d[\d.]*(?:e[-+]?\d+)?|inf|nan)\b"

#: In a batch the message has a list of them.
_NUMBERS = re.compile(rf"\[{_NUMBER}(?:, {_NUMBER})*\]|{_NUMBER}")


@dataclass(frozen=True)
class Fault:
    """A law that is broken in the same way in some cases.

    Attributes:
        law: the name of the law.
        sentence: what the law says of the first case, without the name of the case.
        cases: all cases in which it says the same, but for numbers.
    """

    law: str
    sentence: str
    cases: tuple[Case, ...]


def grouped(broken: Iterable[tuple[Trial, AssertionError]]) -> list[Fault]:
    """Group broken laws into faults: by the law, and by its sentence without the numbers.

    Args:
        broken: trials that have failed, and what they raised.

    Returns:
        The faults, in the order in which each was first seen.
    """
    found: dict[tuple[str, str], tuple[str, list[Case]]] = {}
    for trial, error in broken:
        law = trial.law.__name__
        sentence = str(error).removeprefix(f"{trial.case}: ").removeprefix(f"{law} ")
        _, cases = found.setdefault((law, _NUMBERS.sub("#", sentence)), (sentence, []))
        cases.append(trial.case)
    return [Fault(law, said, tuple(cases)) for (law, _), (said, cases) in found.items()]
