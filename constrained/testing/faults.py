"""Group failed trials by what is wrong, since one fault may show in many cases."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from constrained.testing.case import Case
from constrained.testing.runner import Trial

#: A number in a message. It differs between cases of the same fault.
_NUMBER = r"[-+]?\b(?:\d[\d.]*(?:e[-+]?\d+)?|inf|nan)\b"

#: For a batch, the message has a list of numbers.
_NUMBERS = re.compile(rf"\[{_NUMBER}(?:, {_NUMBER})*\]|{_NUMBER}")


@dataclass(frozen=True)
class Fault:
    """A law that is broken in the same way in some cases.

    Attributes:
        law: the name of the law.
        sentence: the law's message for the first case, without the name of the case.
        cases: all cases with the same message up to its numbers.
    """

    law: str
    sentence: str
    cases: tuple[Case, ...]


def grouped(broken: Iterable[tuple[Trial, AssertionError]]) -> list[Fault]:
    """Group broken laws into faults, by the law and by its message without numbers.

    Args:
        broken: trials that have failed, and what they raised.

    Returns:
        The faults, in the order of their first cases.
    """
    found: dict[tuple[str, str], tuple[str, list[Case]]] = {}
    for trial, error in broken:
        law = trial.law.__name__
        sentence = str(error).removeprefix(f"{trial.case}: ").removeprefix(f"{law} ")
        _, cases = found.setdefault((law, _NUMBERS.sub("#", sentence)), (sentence, []))
        cases.append(trial.case)
    return [Fault(law, said, tuple(cases)) for (law, _), (said, cases) in found.items()]
