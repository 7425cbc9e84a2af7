"""Writes docs/accuracy.md from what it measures: `make accuracy`. It takes some minutes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from constrained import get, names, testing
from constrained.constraint.base import Constraint
from constrained.testing.bounds import distance, scale, size
from constrained.testing.case import Case, unpack
from constrained.testing.optimum_laws import GAP, RATE, STEPS, solutions
from constrained.testing.points import graded, params

PAGE = Path(__file__).with_name("accuracy.md")

HEAD = f"""# Optima and accuracy

Measured in single precision on the largest example of each constraint, and written by
`make accuracy`.

**Optima.** {STEPS} steps of Adam, with a learning rate that falls from {RATE:g} times a typical
parameter to zero, from at least five starts: two random members, the projections of zeros, of ones,
of the identity and of a random outsider. Two problems with a known optimum each: to reach a given
member, and, where `project` is the nearest point, to find the member nearest to a tensor outside.
The column holds the largest excess over the optimum at the end, in units of the optimum and of the
loss of missing it by a typical element: at most {GAP:g}, which is the law
`adam_reaches_the_optimum`.

**Right inverse.** The largest error of `forward(right_inverse(x))`, relative to x or to a typical
element, for the values x of parameters of standard deviation 1e-6, 1e-5, ... 1e6 and for members
whose singular values, or entries, spread over six decades, scaled by 1e-6, 1 and 1e6. Where it is
below 1e-4, the right inverse holds to 1e-4 in all of this range.

| constraint | shape | problems | excess over the optimum | error of the right inverse |
|---|---|---|---|---|
"""


def cases() -> Iterator[Case]:
    """The cases of the law about optima, on constraints that the catalogue itself holds."""
    for name in names():
        cls = get(name)
        if cls.__module__.partition(".")[0] == "constraints":
            yield from (t.case for t in testing.trials(cls, [testing.adam_reaches_the_optimum]))


def label(case: Case) -> str:
    """How a case is called in the table."""
    return f"`{case.build()!r}`" + (" complex" if case.dtype.is_complex else "")


def row(case: Case) -> str:
    """One line of the table."""
    constraint = case.build()
    shape = " x ".join(map(str, case.event)) or "scalar"
    if constraint.dimension(case.event) == 0:
        problems, excess = "0", "a single point"
    elif "adam_reaches_the_optimum" in constraint.expected_failures:
        problems, excess = "0", constraint.expected_failures["adam_reaches_the_optimum"]
    else:
        found = list(solutions(case))
        problems, excess = str(len(found)), f"{max(0.0, *(s.gap for s in found)):.0e}"
    error = right_inverse_error(case, constraint)
    return f"| {label(case)} | {shape} | {problems} | {excess} | {error:.0e} |"


def right_inverse_error(case: Case, constraint: Constraint) -> float:
    """The largest relative error of ``forward(right_inverse(x))`` over all scales."""
    values = [constraint(*params(case, constraint, 10.0**k)) for k in range(-6, 7)]
    values += [constraint.project(factor * graded(case)) for factor in (1e-6, 1.0, 1e6)]
    errors = []
    for value in values:
        found = constraint(*unpack(constraint.right_inverse(value)))
        unit = size(value, case.event_dim).clamp(min=scale(case))
        errors.append(float((distance(found, value, case.event_dim) / unit).amax()))
    return max(errors)


if __name__ == "__main__":
    torch.set_num_threads(1)
    lines = []
    for case in cases():
        lines.append(row(case))
        print(lines[-1], flush=True)
    PAGE.write_text(HEAD + "\n".join(lines) + "\n", "utf-8")
