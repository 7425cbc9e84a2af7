"""A sweep over constraints, each a string, on scikit-learn's digits."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from constrained import constrain, violations

#: What the hidden 64 x 64 weight of the network is constrained to; None for no constraint.
SPECS: tuple[str | None, ...] = (
    None,
    "orthogonal",
    "spectral_norm",
    "low_rank(rank=8)",
    "symmetric",
    "nonnegative",
    "sphere",
    "max_norm(bound=1)",
    "row_stochastic",
    "doubly_stochastic",
    "banded(width=4)",
    "positive_definite",
    "circulant",
)


@dataclass(frozen=True)
class Trained:
    """What became of one network.

    Attributes:
        spec: the constraint, or "none".
        accuracies: on held-out digits, one for each seed.
        milliseconds: of a training step, the median.
        violation: the largest after training.
    """

    spec: str
    accuracies: tuple[float, ...]
    milliseconds: float
    violation: float


def sweep(specs: Sequence[str | None] = SPECS, epochs: int = 10, seeds: int = 1) -> list[Trained]:
    """Train a network of two hidden layers under each constraint in turn."""
    return [_train(spec, epochs, seeds) for spec in specs]


def table(results: Sequence[Trained]) -> str:
    """Markdown, the best first."""
    lines = ["| constraint | accuracy | ms per step | violation |", "|---|---|---|---|"]
    for r in sorted(results, key=lambda r: -statistics.mean(r.accuracies)):
        mean = statistics.mean(r.accuracies)
        lines.append(f"| `{r.spec}` | {mean:.3f} | {r.milliseconds:.2f} | {r.violation:.1e} |")
    return "\n".join(lines)


def picture(results: Sequence[Trained]) -> Figure:
    """Accuracy, and the time of a step, of each constraint."""
    ordered = sorted(results, key=lambda r: statistics.mean(r.accuracies))
    specs = [r.spec for r in ordered]
    colors = ["#c2553d" if spec == "none" else "#1f6f8b" for spec in specs]
    figure = Figure(figsize=(9, 0.3 * len(specs) + 1), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    accuracies = [statistics.mean(r.accuracies) for r in ordered]
    # Points, whose axis need not begin at zero.
    left.scatter(accuracies, specs, color=colors, zorder=3)
    left.grid(axis="y", color="#e3e5e8")
    left.set_xlabel("accuracy on held-out digits")
    right.barh(specs, [r.milliseconds for r in ordered], color=colors)
    right.set_xlabel("milliseconds per training step")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _train(spec: str | None, epochs: int, seeds: int) -> Trained:
    accuracies, seconds, worst = [], [], 0.0
    for seed in range(seeds):
        x, x_test, y, y_test = _digits(seed)
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
        )
        if spec is not None:
            constrain(model, "2.weight", spec)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(epochs):
            for batch in torch.randperm(len(x)).split(64):
                start = time.perf_counter()
                optimizer.zero_grad()
                F.cross_entropy(model(x[batch]), y[batch]).backward()
                optimizer.step()
                seconds.append(time.perf_counter() - start)
        with torch.no_grad():
            accuracies.append(float((model(x_test).argmax(-1) == y_test).float().mean()))
        worst = max(worst, *violations(model).values(), 0.0)
    return Trained(spec or "none", tuple(accuracies), 1e3 * statistics.median(seconds), worst)


def _digits(seed: int) -> list[Tensor]:
    images, labels = load_digits(return_X_y=True)
    x, x_test, y, y_test = train_test_split(images / 16, labels, test_size=0.3, random_state=seed)
    return [
        *(torch.as_tensor(part, dtype=torch.float32) for part in (x, x_test)),
        *(torch.as_tensor(part) for part in (y, y_test)),
    ]
