"""``python -m benchmarks yardsticks``: every method on every problem, in seconds and evaluations.

A method that has a learning rate takes the one of its grid that is best for each problem. Which one
that is stands in the committed results; with ``FULL=1``, and for a method that is new there, the
whole grid is tried first. Methods take turns, on one thread, in double precision.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial

import torch
from threadpoolctl import threadpool_limits

from benchmarks.harness import RESULTS, environment
from benchmarks.settings import is_full
from benchmarks.yardsticks import copying_memory, problems, tables
from benchmarks.yardsticks.copying_memory import copying
from benchmarks.yardsticks.measure import Attempt, Method, race, tuned
from benchmarks.yardsticks.methods import methods_for
from benchmarks.yardsticks.problems import Task, Yardstick

PATH = RESULTS / "yardsticks.json"
#: Seconds for each attempt on a small problem, and on a large one.
LIMITS = {"small": 0.5, "large": 3.5}
ROUNDS = 3

Entry = tuple[Callable[[], Task], str]


def entries(sizes: Sequence[str] = ("small", "large")) -> list[Entry]:
    """Problems, and whether they are small or large."""
    found: list[Entry] = []
    for size in sizes:
        large = size == "large"
        found += [(make, size) for make in (problems.LARGE if large else problems.SMALL)]
        found.append((partial(copying, 100 if large else 10), size))
    return found


def methods_of(task: Task) -> list[Method]:
    """Those that know the problem."""
    if isinstance(task, Yardstick):
        return methods_for(task)
    return copying_memory.METHODS


def run(
    chosen: Sequence[Entry],
    known: Sequence[Attempt] = (),
    rounds: int = ROUNDS,
    limits: dict[str, float] = LIMITS,
) -> Iterator[list[Attempt]]:
    """The attempts on each problem.

    Args:
        chosen: the problems.
        known: earlier attempts, whose learning rates are taken again.
        rounds: of each race.
        limits: seconds for each attempt, by size.
    """
    rates = {(a.problem, a.size, a.method): a.rate for a in known}
    for make, size in chosen:
        task, limit = make(), limits[size]
        if isinstance(task, Yardstick):
            _ = task.start_excess, task.curvature  # computed once, in nobody's time
        methods = methods_of(task)
        taken = []
        for method in methods:
            rate = rates.get((task.name, task.size, method.name))
            if rate is None or (method.rates and rate not in method.rates):
                rate = tuned(task, method, limit / 2)
            taken.append(rate)
        yield race(task, methods, taken, limit, rounds)


def save(attempts: Sequence[Attempt]) -> None:
    """Write attempts as JSON, a point for each tenth by which a gap fell."""
    content = {
        "environment": {**environment(), "dtype": "torch.float64"},
        "limits": LIMITS,
        "attempts": [_shortened(a) for a in attempts],
    }
    PATH.write_text(json.dumps(content) + "\n")


def load() -> list[Attempt]:
    """Read what `save` wrote."""
    if not PATH.exists():
        return []
    return [
        Attempt(**{**a, "targets": tuple(a["targets"])})
        for a in json.loads(PATH.read_text())["attempts"]
    ]


def _shortened(a: Attempt) -> dict[str, object]:
    kept: list[int] = []
    for i, gap in enumerate(a.gaps):
        is_first = i in {a.first(target) for target in a.targets}
        if not kept or is_first or i == len(a.gaps) - 1 or gap < 0.7 * a.gaps[kept[-1]]:
            kept.append(i)
    return {
        **asdict(a),
        "gaps": [float(f"{a.gaps[i]:.4g}") for i in kept],
        "evaluations": [a.evaluations[i] for i in kept],
        "seconds": [float(f"{a.seconds[i]:.4g}") for i in kept],
    }


def main() -> None:
    """Run all, print the tables, write the results."""
    torch.set_num_threads(1)
    begin = time.perf_counter()
    attempts: list[Attempt] = []
    with threadpool_limits(1):  # that of NumPy's and SciPy's BLAS
        for group in run(entries(), () if is_full() else load()):
            attempts += group
            tables.show(group)
    tables.show_targets(attempts)
    save(attempts)
    print(f"{time.perf_counter() - begin:.0f} s; written to {PATH}")


if __name__ == "__main__":
    main()
