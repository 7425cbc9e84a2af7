"""The copying problem: a recurrent network reads ten symbols, waits, and writes them down.

Reference: Arjovsky, Shah and Bengio, Unitary evolution recurrent neural networks (ICML 2016),
section 5.2. Without memory the best cross-entropy is 10 ln 8 / (T + 20).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import geoopt
import geotorch
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import orthogonal as torch_orthogonal

from benchmarks.quality import Curve, best, save, start_geotorch, summary
from benchmarks.settings import is_full
from constrained import constrain

SYMBOLS, LENGTH, HIDDEN, BATCH = 8, 10, 128, 32
#: The learning rates of the kernel; all else has ten times as much.
RATES = (1e-4, 3e-4, 1e-3)


class Network(nn.Module):
    """``h <- modrelu(h W' + U x)``, and a linear read-out."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Linear(HIDDEN, HIDDEN, bias=False)
        nn.init.orthogonal_(self.kernel.weight)
        self.read_in = nn.Linear(SYMBOLS + 2, HIDDEN, bias=False)
        self.bias = nn.Parameter(torch.zeros(HIDDEN))
        self.read_out = nn.Linear(HIDDEN, SYMBOLS + 1)

    def forward(self, x: Tensor) -> Tensor:
        """From symbols, of shape ``(time, batch)``, to logits."""
        h = torch.zeros(x.shape[1], HIDDEN)
        states = []
        for u in self.read_in(F.one_hot(x, SYMBOLS + 2).float()):
            z = self.kernel(h) + u
            h = z.sign() * F.relu(z.abs() + self.bias)
            states.append(h)
        return self.read_out(torch.stack(states))


def baseline(delay: int) -> float:
    """The cross-entropy of the best network without memory."""
    return LENGTH * math.log(SYMBOLS) / (delay + 2 * LENGTH)


def run(
    delay: int = 100, steps: int = 200, seeds: int = 1, rates: Sequence[float] = RATES
) -> Iterator[Curve]:
    """All contenders, each at the best learning rate of its kernel."""
    for seed in range(seeds):
        for name in _CONTENDERS:
            yield best([_train(name, rate, delay, steps, seed) for rate in rates])


def _sequences(delay: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Symbols 1 to 8, blanks (0), and a sign (9) to write what was read."""
    message = torch.randint(1, SYMBOLS + 1, (LENGTH, BATCH), generator=generator)
    blanks = torch.zeros(delay + LENGTH, BATCH, dtype=torch.long)
    x = torch.cat([message, blanks])
    x[LENGTH + delay - 1] = SYMBOLS + 1
    return x, torch.cat([torch.zeros(delay + LENGTH, BATCH, dtype=torch.long), message])


def _plain(network: Network) -> None:
    del network


def _geotorch(network: Network) -> None:
    start = network.kernel.weight.detach().clone()
    geotorch.orthogonal(network.kernel, "weight")
    start_geotorch(network.kernel, start)


def _geoopt(network: Network) -> None:
    network.kernel.weight = geoopt.ManifoldParameter(
        network.kernel.weight.detach().clone(), manifold=geoopt.EuclideanStiefel()
    )


_CONTENDERS: Mapping[
    str, tuple[Callable[[Network], object], Callable[[], AbstractContextManager[None]]]
] = {
    "unconstrained": (_plain, nullcontext),
    "constrained": (lambda n: constrain(n, "kernel.weight", "orthogonal"), nullcontext),
    "torch cayley, cached()": (
        lambda n: torch_orthogonal(n.kernel, orthogonal_map="cayley"),
        parametrize.cached,
    ),
    "geotorch exp, cached()": (_geotorch, parametrize.cached),
    "geoopt": (_geoopt, nullcontext),
}


def _train(name: str, rate: float, delay: int, steps: int, seed: int) -> Curve:
    prepare, context = _CONTENDERS[name]
    torch.manual_seed(seed)
    network = Network()
    prepare(network)
    kernel = list(network.kernel.parameters())
    others = [p for p in network.parameters() if all(p is not k for k in kernel)]
    groups = [{"params": kernel, "lr": rate}, {"params": others, "lr": 10 * rate}]
    riemannian = name == "geoopt"
    optimizer = geoopt.optim.RiemannianAdam(groups) if riemannian else torch.optim.Adam(groups)
    generator = torch.Generator().manual_seed(seed)
    losses, seconds, start = [], [], time.perf_counter()
    for _ in range(steps):
        x, y = _sequences(delay, generator)
        optimizer.zero_grad()
        with context():
            loss = F.cross_entropy(network(x).flatten(0, 1), y.flatten())
            loss.backward()
        nn.utils.clip_grad_norm_(others, 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
        seconds.append(time.perf_counter() - start)
        if not math.isfinite(losses[-1]):
            break
    target = baseline(delay) / 4
    return Curve(f"copying, T = {delay}", name, rate, seed, target, losses, seconds)


def main() -> None:
    """Run, write the results, and print the summary."""
    torch.set_num_threads(1)
    if is_full():
        curves = [*run(steps=400, seeds=3), *run(delay=500, steps=600, seeds=3)]
    else:
        curves = list(run())
    print(summary(curves))
    print(f"Written to {save(curves, 'copying')}")


if __name__ == "__main__":
    main()
