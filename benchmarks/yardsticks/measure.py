"""Time a method on a problem: when did it first ask for a point that is as good as the optimum?

Every point at which a method evaluates the loss is looked at, while the clock stands still. One
that lies outside of the set doesn't count. So a method needs no callback, and none can count a
point that it never had. Seconds are those of the processor, so that other work on the machine
doesn't count; there is one thread.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from benchmarks.yardsticks.problems import Task

#: A method that has not come closer by a hundredth of its gap for so long is at its end.
STALLED_EVALUATIONS, STALLED_SECONDS = 400, 0.5

#: A descent whose gap is so many times that of the start is lost.
DIVERGED = 1e4

#: Those that need at most so many times the seconds of the first are timed again.
NEAR = 4.0


class Finished(Exception):
    """Raised from within the loss: solved, out of time, or no longer getting closer."""


@dataclass
class Attempt:
    """What one method did on one problem.

    Attributes:
        problem: its name.
        size: of the problem.
        method: its name.
        rate: the learning rate; 0 for a method that has none.
        gaps: each gap to the optimum that was smaller than all before, of points in the set.
        evaluations: of the loss, until then.
        seconds: until then.
        outside: how many better points were not counted because they lay outside of the set.
        targets: the gaps to time.
        failure: the error that ended it, if one did.
    """

    problem: str
    size: str
    method: str
    rate: float
    targets: tuple[float, float]
    gaps: list[float] = field(default_factory=list)
    evaluations: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    outside: int = 0
    failure: str = ""

    def first(self, target: float) -> int | None:
        """Which entry of the lists is the first at or below a gap."""
        return next((i for i, gap in enumerate(self.gaps) if gap <= target), None)

    def seconds_to(self, target: float) -> float:
        """When that was; infinity for never."""
        at = self.first(target)
        return math.inf if at is None else self.seconds[at]

    def evaluations_to(self, target: float) -> float:
        """After how many evaluations of the loss that was; infinity for never."""
        at = self.first(target)
        return math.inf if at is None else self.evaluations[at]

    @property
    def last_gap(self) -> float:
        """The smallest gap."""
        return self.gaps[-1] if self.gaps else math.inf

    @property
    def is_solved(self) -> bool:
        """Whether the last target was reached."""
        return self.last_gap <= self.targets[-1]


class BelowTheOptimum(BaseException):
    """Raised where a point of the set is better than what is known as the optimum."""


class Loss:
    """The gap of a problem as a function, which keeps the time and ends the attempt."""

    def __init__(self, task: Any, attempt: Attempt, limit: float) -> None:
        self._task, self._attempt, self._limit = task, attempt, limit
        self._evaluations, self._improved_at = 0, (0, 0.0)
        self._paused, self._start = 0.0, time.process_time()

    def __call__(self, X: Tensor) -> Tensor:
        """The gap at a point, differentiable."""
        gap: Tensor = self._task.gap(X)
        self.saw(float(gap.detach()), X)
        return gap

    def saw(self, gap: float, X: Tensor) -> None:
        """Note a point and its gap; `Finished` when there is no reason to go on."""
        now = time.process_time()
        seconds = now - self._start - self._paused
        self._evaluations += 1
        attempt = self._attempt
        if self._is_news(gap):
            if self._task.violation(X.detach()) <= self._task.feasibility:
                attempt.gaps.append(gap)
                attempt.evaluations.append(self._evaluations)
                attempt.seconds.append(seconds)
                self._improved_at = (self._evaluations, seconds)
            else:
                attempt.outside += 1
        self._paused += time.process_time() - now
        if gap < -1e-7 and attempt.last_gap == gap:
            raise BelowTheOptimum(
                f"{attempt.problem}: {attempt.method} is below the optimum: {gap}"
            )
        evaluations, at = self._improved_at
        has_stalled = (
            self._evaluations - evaluations > STALLED_EVALUATIONS and seconds - at > STALLED_SECONDS
        )
        # A line search comes back from such a point, a learning rate does not.
        has_diverged = attempt.rate > 0 and not gap < DIVERGED
        if attempt.is_solved or seconds > self._limit or has_stalled or has_diverged:
            raise Finished

    def _is_news(self, gap: float) -> bool:
        best = self._attempt.last_gap
        reached = any(gap <= target < best for target in self._attempt.targets)
        return math.isfinite(gap) and (reached or gap < 0.99 * best)


#: From a problem, its loss and a learning rate: evaluates the loss until it raises `Finished`, or
#: returns, having evaluated it at what it found.
Solve = Callable[[Any, Loss, float], object]


@dataclass(frozen=True)
class Method:
    """One way to solve problems.

    Attributes:
        name: of the library and of the method.
        solve: does it.
        sets: the names of the constraints that it knows; None for all.
        rates: the learning rates to choose from; empty for a method that has none.
        takes_any_loss: rather than being made for one problem.
    """

    name: str
    solve: Solve
    sets: tuple[str, ...] | None = None
    rates: tuple[float, ...] = ()
    takes_any_loss: bool = True


def attempt(task: Task, method: Method, rate: float, limit: float) -> Attempt:
    """Let a method solve a problem, for at most so many seconds."""
    made = Attempt(task.name, task.size, method.name, rate, task.targets)
    try:
        method.solve(task, Loss(task, made, limit), rate)
    except Finished:
        return made
    except Exception as error:
        # What a library raises at a learning rate that is too large is a result.
        made.failure = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return made


def best(attempts: Sequence[Attempt]) -> Attempt:
    """The one that solved the problem first, or else came closest."""
    return min(
        attempts, key=lambda a: (*(a.seconds_to(t) for t in reversed(a.targets)), a.last_gap)
    )


def tuned(task: Task, method: Method, limit: float) -> float:
    """The learning rate of the grid that solves a problem first."""
    if not method.rates:
        return 0.0
    tried: list[Attempt] = []
    for rate in method.rates:
        # One that is slower than the best so far need not come to its end.
        enough = min([limit, *(_last_seconds(a) for a in tried)])
        tried.append(attempt(task, method, rate, enough))
    return best(tried).rate


def race(
    task: Task,
    methods: Sequence[Method],
    rates: Sequence[float],
    limit: float,
    rounds: int = 1,
) -> list[Attempt]:
    """Let methods take turns, each round beginning with another one.

    From the second round on only those take part that solved the problem within `NEAR` times the
    seconds of the first that takes any loss. The median attempt of each is kept.
    """
    of: dict[int, list[Attempt]] = {i: [] for i in range(len(methods))}
    near = math.inf
    for k in range(rounds):
        shift = k * len(methods) // rounds
        for j in range(len(methods)):
            i = (j + shift) % len(methods)
            if k == 0 or _last_seconds(of[i][0]) <= near:
                of[i].append(attempt(task, methods[i], rates[i], limit))
        if k == 0:
            general = [a[0] for i, a in of.items() if methods[i].takes_any_loss]
            near = min(NEAR * min(_last_seconds(a) for a in general), limit)
    return [_median(group) for group in of.values()]


def _last_seconds(a: Attempt) -> float:
    return a.seconds_to(a.targets[-1])


def _median(attempts: Sequence[Attempt]) -> Attempt:
    return sorted(attempts, key=_last_seconds)[(len(attempts) - 1) // 2]
