"""``python -m benchmarks.width_transfer``: which learning rate is best for networks of each width.

A network 64 - width - width - 10 is trained on scikit-learn's digits: with orthogonal matrices by
`ManifoldMuon`, and without constraints by Adam, both with learning rates that fall linearly. Each
orthogonal matrix is multiplied by sqrt(outputs / inputs), so that it keeps the root mean square of
its inputs, whatever the width. The best learning rate of Adam falls with the width.
"""

from __future__ import annotations

import argparse
import itertools
import math

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from constrained.optim import ManifoldMuon

RATES = {
    "ManifoldMuon": (0.03, 0.06, 0.12, 0.25, 0.5, 1.0),
    "Adam": (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2),
}
BATCH = 256
#: The logits of the orthogonal network have the root mean square 1; this lets them be sharper.
SHARPNESS = 8.0


class Network(nn.Module):
    """Three layers without biases, scaled if they are orthogonal."""

    def __init__(self, width: int, orthogonal: bool) -> None:
        super().__init__()
        sizes = (64, width, width, 10)
        self.layers = nn.ModuleList(
            nn.Linear(a, b, bias=False) for a, b in itertools.pairwise(sizes)
        )
        self.orthogonal = orthogonal
        if orthogonal:
            for layer in self.layers:
                nn.init.orthogonal_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        """The logits."""
        for i, layer in enumerate(self.layers):
            if i:
                x = F.relu(x) * math.sqrt(2)
            x = layer(x)
            if self.orthogonal:
                x = x * math.sqrt(layer.out_features / layer.in_features)
        return SHARPNESS * x if self.orthogonal else x


def trained(width: int, method: str, rate: float, steps: int, seed: int) -> tuple[float, float]:
    """The loss on the training data and the accuracy on the test data."""
    torch.manual_seed(seed)
    pixels, labels = (torch.from_numpy(x) for x in load_digits(return_X_y=True))
    pixels = ((pixels - pixels.mean()) / pixels.std()).float()
    order = torch.randperm(len(pixels))
    train, test = order[:1400], order[1400:]
    net = Network(width, orthogonal=method == "ManifoldMuon")
    optimizer: torch.optim.Optimizer
    if method == "ManifoldMuon":
        optimizer = ManifoldMuon(net.parameters(), rate, constraint="orthogonal")
    else:
        optimizer = torch.optim.Adam(net.parameters(), rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 - t / steps)
    for _ in range(steps):
        some = train[torch.randint(len(train), (BATCH,))]
        optimizer.zero_grad()
        F.cross_entropy(net(pixels[some]), labels[some]).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        loss = F.cross_entropy(net(pixels[train]), labels[train])
        accuracy = (net(pixels[test]).argmax(-1) == labels[test]).float().mean()
    return float(loss), float(accuracy)


def main() -> None:
    """Print a table of each method: a row for each width, a column for each learning rate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--widths", type=int, nargs="*", default=[64, 128, 256, 512, 1024])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for method, rates in RATES.items():
        print(f"\n{method}, {options.steps} steps: training loss / test accuracy\n")
        print("| width | " + " | ".join(f"{rate:g}" for rate in rates) + " | best |")
        print("|---|" + "---|" * (len(rates) + 1))
        for width in options.widths:
            cells, losses = [], []
            for rate in rates:
                found = [
                    trained(width, method, rate, options.steps, seed)
                    for seed in range(options.seeds)
                ]
                loss, accuracy = (sum(x) / len(x) for x in zip(*found, strict=True))
                losses.append(loss)
                cells.append(f"{loss:.4f} / {accuracy:.3f}")
            best = rates[min(range(len(rates)), key=losses.__getitem__)]
            print(f"| {width} | " + " | ".join(cells) + f" | {best:g} |", flush=True)


if __name__ == "__main__":
    main()
