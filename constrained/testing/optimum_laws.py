"""The law that training gets there: Adam ends at the known optimum of a tiny problem."""

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

#: Steps of Adam, and its first learning rate in units of a typical parameter; it falls to zero.
STEPS = 1000
RATE = 0.1

#: How often each start is tried, with other random numbers: what one draw reaches may be luck.
DRAWS = 2

#: Into how many steps the way to a target is divided, to see whether the set is left on it.
WAY = 8

#: What the loss at the end may exceed the optimum by, relative to `Solution.gap`'s unit.
GAP = 1e-3


@dataclass(frozen=True)
class Problem:
    """To lie as near as possible to a target.

    Attributes:
        name: ``"inside"``, to reach a member of the set, or ``"nearest"``, to find the member that
            is nearest to a tensor outside.
        target: one for each start.
        best: the optimum.
    """

    name: str
    target: Tensor
    best: Tensor


@dataclass(frozen=True)
class Solution:
    """How a problem ended.

    Attributes:
        start: where training began.
        problem: the name of what was to be solved.
        gap: how much higher than the optimum the loss ended, in units of the optimum and of the
            loss of missing it by the norm of a typical element.
    """

    start: str
    problem: str
    gap: float


def solutions(case: Case) -> Iterator[Solution]:
    """Train a weight to lie as near as possible to a target, from degenerate starts and others.

    The loss is half the squared distance, relative to a typical entry of the set. Its optimum is
    known: zero for a target in the set; for one outside that of `Constraint.project`, where that is
    the nearest member. A target lies on the start's side of a random member, since a set may be in
    several pieces that no gradient step connects.
    """
    constraint = case.build()
    # Elements of a batch know nothing of each other, and Adam works entry by entry.
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
        # One training for all of them, where it takes no element for a part of another.
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
    """From ten starts, degenerate ones among them, Adam ends within 1e-3 of a known optimum."""
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
    """Five elements by name, six for matrices: random ones, and where degenerate tensors start."""
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

    In a piece of the set that is not the start's there is another optimum; and right beside the
    start nothing is to be learned. How far it is, is told by the longest of some steps along the
    projection of the straight line: one that jumps from a piece to another is longer than all.
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
