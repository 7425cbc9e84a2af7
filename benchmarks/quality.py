"""Training quality: loss against steps and seconds, the same start for all.

``python -m benchmarks.quality`` runs the small setting, one seed; with ``FULL=1`` it takes three.
Each contender that takes a learning rate is shown at the best of a grid: the one that reaches the
target in the fewest steps, or else ends lowest.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import geoopt
import geotorch
import numpy
import pymanopt
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal as torch_orthogonal

from benchmarks import problems
from benchmarks.harness import RESULTS, environment
from benchmarks.problems import Problem
from benchmarks.settings import is_full
from constrained import constrain
from constrained.constraint.spec import parse

RATES = (0.01, 0.03, 0.1, 0.3, 1.0)
PROBLEMS = (
    problems.procrustes,
    problems.principal_components,
    problems.completion,
    problems.covariance,
)


@dataclass(frozen=True)
class Curve:
    """What a contender did on a problem.

    Attributes:
        problem: its name.
        contender: who.
        rate: the learning rate; 0 for a method that has none.
        seed: of the problem.
        target: the loss that counts as solved.
        losses: before each step.
        seconds: when they were reached.
    """

    problem: str
    contender: str
    rate: float
    seed: int
    target: float
    losses: list[float]
    seconds: list[float]

    def steps_to_target(self) -> float:
        """The first step at which the target was reached; infinity if none."""
        reached = (i for i, loss in enumerate(self.losses) if loss <= self.target)
        return next(reached, math.inf)

    def seconds_to_target(self) -> float:
        """When that was."""
        steps = self.steps_to_target()
        return math.inf if steps == math.inf else self.seconds[int(steps)]


class Holder(nn.Module):
    """A module that holds one weight."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.clone())


def run(
    seeds: int = 1,
    steps: int = 300,
    tried: Mapping[tuple[str, str], Sequence[float]] | None = None,
) -> Iterator[Curve]:
    """All problems and all contenders that know the set.

    Args:
        seeds: of each problem.
        steps: of each contender.
        tried: the learning rates to try, by problem and contender; by default `RATES`.
    """
    for make in PROBLEMS:
        for seed in range(seeds):
            problem = make(seed)
            for name, (prepare, optimizer, rates) in _contenders(problem).items():
                rates = (tried or {}).get((problem.name, name), rates)
                yield best(
                    [_descend(problem, name, prepare, optimizer, r, seed, steps) for r in rates]
                )
            yield _pymanopt(problem, seed, steps)


def best_rates(curves: Sequence[Curve]) -> dict[tuple[str, str], list[float]]:
    """The learning rates at which earlier curves were the best, by problem and contender."""
    groups = _grouped(curves).items()
    return {of: sorted({curve.rate for curve in group}) for of, group in groups}


def best(curves: Sequence[Curve]) -> Curve:
    """That of the learning rate that suits a contender."""
    return min(curves, key=lambda c: (c.steps_to_target(), _last(c)))


def summary(curves: Sequence[Curve]) -> str:
    """Markdown: steps and seconds to the target, medians over the seeds."""
    lines = [
        "| problem (target) | contender | rate | steps | seconds | last loss |",
        "|---|---|---|---|---|---|",
    ]
    for (problem, contender), group in _grouped(curves).items():
        steps, seconds = (
            _median([getattr(c, f"{kind}_to_target")() for c in group])
            for kind in ("steps", "seconds")
        )
        rates = ", ".join(sorted({f"{c.rate:g}" for c in group if c.rate})) or "none"
        lines.append(
            f"| {problem} ({group[0].target:g}) | {contender} | {rates} | {steps:g} "
            f"| {seconds:.3g} | {_median([_last(c) for c in group]):.1e} |"
        )
    return "\n".join(lines)


def picture(curves: Sequence[Curve], seed: int = 0) -> Figure:
    """Loss against steps, above, and against seconds, below: one column a problem."""
    names = list(dict.fromkeys(c.problem for c in curves))
    figure = Figure(figsize=(max(7.0, 4.2 * len(names)), 6), layout="constrained")
    grid = figure.subplots(2, len(names), squeeze=False)
    contenders = list(dict.fromkeys(c.contender for c in curves))
    colors = {name: f"C{i}" for i, name in enumerate(contenders)}
    for column, name in enumerate(names):
        for curve in (c for c in curves if c.problem == name and c.seed == seed):
            width = 2.4 if curve.contender.startswith("constrained") else 1.1
            style = {"color": colors[curve.contender], "linewidth": width}
            losses = [max(x, 1e-9) for x in curve.losses]
            grid[0][column].semilogy(losses, label=curve.contender, **style)
            grid[1][column].semilogy(curve.seconds, losses, **style)
        for axes in (grid[0][column], grid[1][column]):
            axes.axhline(curve.target, color="black", linewidth=0.6, linestyle=":")
            axes.spines[["top", "right"]].set_visible(False)
        grid[1][column].set_xscale("log")
        grid[0][column].set_title(name, fontsize=9)
        grid[0][column].set_xlabel("steps")
        grid[1][column].set_xlabel("seconds")
    grid[0][0].set_ylabel("loss")
    grid[1][0].set_ylabel("loss")
    handles, labels = _handles(grid)
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure


def save(curves: Sequence[Curve], name: str = "quality") -> Path:
    """Write curves as JSON, with five digits of each number."""
    path = RESULTS / f"{name}.json"
    rounded = [
        {
            **asdict(c),
            "losses": [float(f"{loss:.5g}") for loss in c.losses],
            "seconds": [float(f"{second:.5g}") for second in c.seconds],
        }
        for c in curves
    ]
    content = {"environment": environment(), "curves": rounded}
    path.write_text(json.dumps(content) + "\n")
    return path


def load(name: str = "quality") -> list[Curve]:
    """Read what `save` wrote."""
    return [Curve(**c) for c in json.loads((RESULTS / f"{name}.json").read_text())["curves"]]


def start_geotorch(module: nn.Module, start: Tensor) -> None:
    """Put the weight of a module under geotorch where the others start."""
    inside: Any = module.parametrizations.weight  # type: ignore[union-attr]
    # Assigned, a member in single precision is rejected.
    original = inside[0].right_inverse(start, check_in_manifold=False)
    with torch.no_grad():
        inside.original.copy_(original)


# -------------------------------------------------------------------------------- contenders

Prepare = Callable[[Problem], nn.Module]
MakeOptimizer = Callable[[nn.Module, float], torch.optim.Optimizer]


def _contenders(problem: Problem) -> Mapping[str, tuple[Prepare, MakeOptimizer, Sequence[float]]]:
    spec = parse(problem.spec).constraint
    theirs = dict(spec.arguments()) if spec.name == "low_rank" else {}

    def ours(p: Problem) -> nn.Module:
        return constrain(Holder(p.start), "weight", p.spec, init="strict")

    def by_torch(p: Problem) -> nn.Module:
        return torch_orthogonal(Holder(p.start), orthogonal_map="cayley")

    def by_geotorch(p: Problem) -> nn.Module:
        holder: nn.Module = Holder(p.start)
        getattr(geotorch, str(spec.name))(holder, "weight", **theirs)
        start_geotorch(holder, p.start)
        return holder

    def by_geoopt(p: Problem) -> nn.Module:
        manifold = {
            "orthogonal": geoopt.EuclideanStiefel,
            "positive_definite": geoopt.SymmetricPositiveDefinite,
        }[str(spec.name)]()
        holder = Holder(p.start)
        holder.weight = geoopt.ManifoldParameter(p.start.clone(), manifold=manifold)
        return holder

    def adam(m: nn.Module, rate: float) -> torch.optim.Optimizer:
        return torch.optim.Adam(m.parameters(), lr=rate)

    def riemannian(m: nn.Module, rate: float) -> torch.optim.Optimizer:
        return geoopt.optim.RiemannianAdam(m.parameters(), lr=rate)

    def lbfgs(m: nn.Module, rate: float) -> torch.optim.Optimizer:
        return torch.optim.LBFGS(
            m.parameters(), max_iter=1, max_eval=25, history_size=20, line_search_fn="strong_wolfe"
        )

    contenders: dict[str, tuple[Prepare, MakeOptimizer, Sequence[float]]] = {
        "constrained, Adam": (ours, adam, RATES),
        "constrained, L-BFGS": (ours, lbfgs, (0.0,)),
        "geotorch, Adam": (by_geotorch, adam, RATES),
    }
    if spec.name == "orthogonal":
        contenders["torch cayley, Adam"] = (by_torch, adam, RATES)
    if spec.name != "low_rank":
        contenders["geoopt, Adam"] = (by_geoopt, riemannian, RATES)
    return contenders


def _descend(
    problem: Problem,
    contender: str,
    prepare: Prepare,
    optimizer: MakeOptimizer,
    rate: float,
    seed: int,
    steps: int,
) -> Curve:
    module = prepare(problem)
    stepper = optimizer(module, rate)
    losses, seconds, start = [], [], time.perf_counter()

    def closure() -> Tensor:
        stepper.zero_grad()
        loss = problem.loss(module.weight)  # type: ignore[arg-type]
        loss.backward()
        return loss

    for _ in range(steps):
        loss = float(stepper.step(closure).detach())
        losses.append(loss if math.isfinite(loss) else math.inf)
        seconds.append(time.perf_counter() - start)
        # A contender that is lost need not be run to the end.
        if not math.isfinite(loss):
            break
    return Curve(problem.name, contender, rate, seed, problem.target, losses, seconds)


def _pymanopt(problem: Problem, seed: int, steps: int) -> Curve:
    n, p = problem.start.shape
    constraint = parse(problem.spec).constraint
    manifolds = pymanopt.manifolds
    start = problem.start.double().numpy()
    if constraint.name == "orthogonal":
        manifold, point = manifolds.Stiefel(n, p), start
    elif constraint.name == "positive_definite":
        manifold, point = manifolds.SymmetricPositiveDefinite(n), start
    else:
        rank = constraint.arguments()["rank"]
        manifold = manifolds.FixedRankEmbedded(n, p, rank)
        u, s, vt = torch.linalg.svd(problem.start.double(), full_matrices=False)
        point = (u[:, :rank].numpy(), s[:rank].numpy(), vt[:rank].numpy())

    if constraint.name == "low_rank":

        @pymanopt.function.pytorch(manifold)
        def cost(u: Tensor, s: Tensor, vt: Tensor) -> Tensor:
            return problem.loss(u @ torch.diag(s) @ vt)

    else:

        @pymanopt.function.pytorch(manifold)
        def cost(W: Tensor) -> Tensor:  # type: ignore[misc]
            return problem.loss(W.float()).double()

    solver = pymanopt.optimizers.ConjugateGradient(
        max_iterations=steps, min_gradient_norm=0, min_step_size=1e-14, verbosity=0, log_verbosity=1
    )
    begin = time.time()
    # At the optimum its step length is 0 / 0, and it stops.
    with numpy.errstate(invalid="ignore"):
        log = solver.run(pymanopt.Problem(manifold, cost), initial_point=point).log["iterations"]
    losses = [float(c) for c in log["cost"]]
    seconds = [t - begin for t in log["time"]]
    return Curve(problem.name, "pymanopt, CG", 0.0, seed, problem.target, losses, seconds)


# ------------------------------------------------------------------------------------ helpers


def _last(curve: Curve) -> float:
    return curve.losses[-1] if curve.losses else math.inf


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


def _grouped(curves: Sequence[Curve]) -> dict[tuple[str, str], list[Curve]]:
    groups: dict[tuple[str, str], list[Curve]] = {}
    for curve in curves:
        groups.setdefault((curve.problem, curve.contender), []).append(curve)
    return groups


def _handles(grid: object) -> tuple[list[object], list[str]]:
    found: dict[str, object] = {}
    for axes in grid[0]:  # type: ignore[index]
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    return list(found.values()), list(found)


def main() -> None:
    """Run, write the results, and print the summary."""
    torch.set_num_threads(1)
    curves = list(run(seeds=3, steps=1000) if is_full() else run())
    print(summary(curves))
    print(f"Written to {save(curves)}")


if __name__ == "__main__":
    main()
