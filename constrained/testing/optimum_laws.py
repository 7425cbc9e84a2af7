"""The law that training succeeds: Adam reaches the known optimum of a small problem."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from constrained.constraint.base import Constraint
from constrained.testing.bounds import scale, size
from constrained.testing.case import Case, expect, unpack
from constrained.testing.one_tensor_model import constrained_model
from constrained.testing.points import degenerate
from constrained.testing.runner import Scope, law

#: Steps of Adam, and its first learning rate in units of a typical parameter. The rate falls to
#: zero.
STEPS = 1000
RATE = 0.1

#: How often each start is tried, with other random numbers, since one success may be luck.
DRAWS = 2

#: Into how many steps the line to a target is divided, to see whether it leaves the set.
WAY = 8

#: By how much the final loss may exceed the optimum, in the unit of `Solution.gap`.
GAP = 1e-3


@dataclass(frozen=True)
class Problem:
    """The problem of lying as near as possible to a target.

    Attributes:
        name: ``"inside"``, to reach a member of the set, or ``"nearest"``, to find the member that
            is nearest to a tensor outside.
        target: the target of each start.
        best: the optimum for each start.
    """

    name: str
    target: Tensor
    best: Tensor


@dataclass(frozen=True)
class Solution:
    """How a problem ended.

    Attributes:
        start: the name of the start.
        problem: the name of the problem.
        gap: how far above the optimum the loss ended. The unit is the optimal loss plus the loss
            of missing the optimum by the norm of a typical element.
    """

    start: str
    problem: str
    gap: float


def solutions(case: Case) -> Iterator[Solution]:
    """Train a weight to lie as near as possible to a target, from random and degenerate starts.

    The loss is half the squared distance, relative to a typical entry of the set. Its optimum is
    known. For a target in the set it is zero. For a target outside it is at `Constraint.project`,
    if the class promises that this is the nearest member. Targets are chosen near the start, since
    a set may have several components that no gradient step connects.
    """
    constraint = case.build()
    # All starts train as one batch: its elements are independent, and Adam works entry by entry.
    together = constraint.event_dim is not None
    begin = {
        f"{name}, draw {draw}": value
        for draw in range(DRAWS if together else 1)
        for name, value in starts(case, constraint, draw).items()
    }
    groups = [list(begin)] if together else [[name] for name in begin]
    for names in groups:
        first = torch.stack([begin[name] for name in names]) if together else begin[names[0]]
        problems = list(_problems(case, constraint, first))
        # One training run for all problems, if elements can form a batch.
        for some in [problems] if together else [[problem] for problem in problems]:
            start = torch.cat([first] * len(some)) if together else first
            target = torch.cat([p.target for p in some]) if together else some[0].target
            best = torch.cat([p.best for p in some]) if together else some[0].best
            least = _loss(case, best, target)
            unit = least + 0.5 * scale(case) ** 2 / _entry(case) ** 2
            found = _train(case, constraint, start, target)
            losses = _loss(case, found, target)
            gaps = [float(gap) for gap in ((losses - least) / unit).reshape(-1)]
            titles = [(name, problem.name) for problem in some for name in names]
            for title, gap in zip(titles, gaps, strict=True):
                yield Solution(*title, gap)


@law(Scope(dtypes=(torch.float32,), batches=((),), one_shape=True, effort="long"))
def adam_reaches_the_optimum(case: Case) -> None:
    """From ten starts, some of them degenerate, Adam ends within 1e-3 of a known optimum."""
    if case.build().dimension(case.event) == 0:
        return
    for solution in solutions(case):
        expect(
            solution.gap <= GAP,
            case,
            f"{STEPS} steps of Adam from {solution.start}, problem {solution.problem!r}: expected "
            f"a loss within {GAP:g} of the optimum, found it {solution.gap:.2g} above.",
        )


def starts(case: Case, constraint: Constraint, draw: int = 0) -> dict[str, Tensor]:
    """Five elements by name, six for matrices: random ones and starts of degenerate tensors."""
    salt = f"start {draw}" if draw else "start"
    names = ("zeros", "ones") if case.event_dim < 2 else ("zeros", "ones", "eye")
    return {
        "a member": case.sample(constraint, salt),
        "another": case.sample(constraint, f"another {salt}"),
        **{name: constraint.start(degenerate(case, name)) for name in names},
        "an outsider": constraint.start(2 * _entry(case) * case.gaussian(salt=salt)),
    }


def _problems(case: Case, constraint: Constraint, first: Tensor) -> Iterator[Problem]:
    """The problems for a batch of starts."""
    generator, dtype = case.generator("targets"), first.dtype
    beyond = [constraint.sample(first.shape, generator=generator, dtype=dtype) for _ in range(16)]
    members = torch.stack([constraint.project(0.6 * first + 0.4 * other) for other in beyond])
    inside = _pick(case, constraint, first, members)
    yield Problem("inside", inside, inside)
    if "nearest" not in constraint.expected_failures:
        noise = torch.randn((16, *first.shape), generator=generator, dtype=dtype)
        target = _pick(case, constraint, first, inside + _entry(case) * noise)
        yield Problem("nearest", target, constraint.project(target))


def _pick(case: Case, constraint: Constraint, first: Tensor, targets: Tensor) -> Tensor:
    """Of 16 targets for each start, the one whose member is the fourth nearest to it.

    In another component of the set than the start's there is another optimum; right beside the
    start there is nothing to learn. The distance is measured by the longest of `WAY` steps along
    the projection of the straight line to the target, because a step that jumps to another
    component is longer than all others.
    """
    last, longest = first.expand_as(targets), torch.zeros(())
    for k in range(1, WAY + 1):
        ahead = torch.lerp(first.expand_as(targets), targets, k / WAY)
        here = torch.stack([constraint.project(point) for point in ahead])
        longest = torch.maximum(longest, size(here - last, case.event_dim))
        last = here
    apart = longest.reshape(16, -1)
    nearest = apart.argsort(0)[3].reshape(1, *first.shape[: -case.event_dim or None])
    nearest = nearest.reshape(*nearest.shape, *[1] * case.event_dim).expand(1, *first.shape)
    return targets.gather(0, nearest)[0]


def _train(case: Case, constraint: Constraint, first: Tensor, target: Tensor) -> Tensor:
    module = constrained_model(constraint, first)
    optimizer = torch.optim.Adam(module.parameters(), lr=RATE * _typical_parameter(case))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        optimizer.zero_grad()
        _loss(case, module(), target).sum().backward()
        optimizer.step()
        schedule.step()
    return module.weight.detach()


def _loss(case: Case, value: Tensor, target: Tensor) -> Tensor:
    square = (value - target).abs().square() / (2 * _entry(case) ** 2)
    return square.flatten(square.ndim - case.event_dim).sum(-1) if case.event_dim else square


def _entry(case: Case) -> float:
    """The root mean square of the entries of a typical element."""
    return scale(case) / max(1, torch.Size(case.event).numel()) ** 0.5


def _typical_parameter(case: Case) -> float:
    constraint = case.build()
    free = [
        param.abs().flatten()
        for k in range(8)
        for i, param in enumerate(
            unpack(constraint.right_inverse(case.sample(salt=f"typical {k}")))
        )
        if i not in constraint.frozen
    ]
    return float(torch.cat(free).square().mean().sqrt()) or 1.0
