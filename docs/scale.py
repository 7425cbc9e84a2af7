"""Writes docs/scale.md from what it measures with 1, 2 and 4 processes: `make scale`."""

from __future__ import annotations

import datetime
import json
import math
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from constrained import constrain
from constrained.training.processes import owners

PAGE = Path(__file__).with_name("scale.md")

WORLDS = (1, 2, 4)

MODES = ("plain", "parametrize", "project")

#: The model that is measured: blocks of q, k, v and o, and the width of its grouped keys.
BLOCKS, WIDTH, KEYS = 4, 256, 32

#: The model of the page: 80 blocks of width 8192 with 8 of 64 heads for keys and values.
LARGE_BLOCKS, LARGE_WIDTH, LARGE_KEYS, PARAMETERS, GPUS = 80, 8192, 1024, 70e9, 512

#: Tokens of a step, in all processes together.
TOKENS = 2**22

#: Bytes of an entry: weights, gradients and moments of the optimizer are in single precision.
ENTRY = 4


def shapes(blocks: int, width: int, keys: int) -> list[tuple[int, int]]:
    """The shapes of the weights of all q, k, v and o."""
    return [(width, width), (keys, width), (keys, width), (width, width)] * blocks


class Block(nn.Module):
    """Four layers as attention has them, without the attention."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (
            nn.Linear(p, n, bias=False) for n, p in shapes(1, WIDTH, KEYS)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Every weight has a gradient."""
        groups = WIDTH // KEYS
        return self.o(self.q(x) + (self.k(x) * self.v(x)).repeat(1, groups))


class Sent(TorchDispatchMode):
    """Counts collectives, and the bytes that this process sends in them.

    A ring sends what all-gather and reduce-scatter need, and an all-reduce is one of each.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, int] = {}
        self.bytes = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See `TorchDispatchMode`."""
        if func.namespace in ("c10d", "_c10d_functional"):
            self._note(func.__name__.partition(".")[0].strip("_"), args)
        return func(*args, **(kwargs or {}))

    def _note(self, name: str, args: Any) -> None:
        world, rank = dist.get_world_size(), dist.get_rank()
        others = (world - 1) / world
        if name == "alltoall_base":
            own, splits = args[1], args[4]
            sent = sum(n for i, n in enumerate(splits) if i != rank) * own.element_size()
            kind = "all-to-all"
        elif name == "allreduce":
            kind, sent = "all-reduce", 2 * others * sum(map(_bytes, args[0]))
        elif name in ("allgather_base", "allgather_into_tensor_coalesced"):
            kind, sent = "all-gather", (world - 1) * _bytes(args[1])
        elif name == "all_gather_into_tensor":
            kind, sent = "all-gather", (world - 1) * _bytes(args[0])
        elif name == "reduce_scatter_base":
            kind, sent = "reduce-scatter", others * _bytes(args[1])
        elif name in ("wait_tensor", "wrap_tensor_autograd"):
            return
        else:
            raise NotImplementedError(f"It is not known how much {name} sends.")
        self.calls[kind] = self.calls.get(kind, 0) + 1
        self.bytes += sent


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


# ----------------------------------------------------------------------------------- the measures


def measure(mode: str) -> dict[str, Any]:
    """What the fourth step of AdamW costs this process."""
    torch.manual_seed(0)
    model = nn.Sequential(*(Block() for _ in range(BLOCKS)))
    if mode != "plain":
        constrain(model, {"*.*.weight": "orthogonal"}, mode=mode)
    else:
        for layer in model.modules():
            if isinstance(layer, nn.Linear):
                nn.init.orthogonal_(layer.weight)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in model:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        (model(torch.randn(64, WIDTH)) - 1).square().mean().backward()
        optimizer.step()

    for _ in range(3):
        step()
    flops = FlopCounterMode(display=False)
    with flops:
        step()
    with Sent() as sent:
        step()
    return {"flops": flops.get_total_flops(), "bytes": sent.bytes, "calls": sent.calls}


def process(folder: Path, rank: int, world: int) -> None:
    """One of the processes: measures every mode."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    limit = datetime.timedelta(seconds=120)
    store = f"file://{folder}/store_{world}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world, timeout=limit)
    found = {mode: measure(mode) for mode in MODES}
    (folder / f"{world}_{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def measured() -> dict[int, list[dict[str, Any]]]:
    """What each of 1, 2 and 4 processes has measured."""
    found: dict[int, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as name:
        for world in WORLDS:
            command = [sys.executable, "-W", "ignore", __file__, name]
            own = [subprocess.Popen([*command, str(rank), str(world)]) for rank in range(world)]
            if any(each.wait(timeout=300) for each in own):
                raise RuntimeError(f"One of {world} processes has failed.")
            files = [Path(name, f"{world}_{rank}.json") for rank in range(world)]
            found[world] = [json.loads(file.read_text()) for file in files]
    return found


# --------------------------------------------------------------------------------------- the page


def product(shape: tuple[int, int]) -> float:
    """Operations of the product of a matrix with a Gram matrix of its own."""
    return 2.0 * math.prod(shape) * min(shape)


def more(found: list[dict[str, Any]], mode: str, what: str) -> list[float]:
    """What a mode costs each process beyond the plain model."""
    return [each[mode][what] - each["plain"][what] for each in found]


def calls(found: dict[str, Any], mode: str) -> str:
    """The collectives of a mode beyond those of the plain model."""
    rest = {
        kind: n - found["plain"]["calls"].get(kind, 0) for kind, n in found[mode]["calls"].items()
    }
    return ", ".join(f"{n} {kind}" for kind, n in sorted(rest.items()) if n) or "none"


def number(x: float, unit: str) -> str:
    """A number with three digits and a prefix."""
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if x >= factor:
            return f"{x / factor:.3g} {prefix}{unit}"
    return f"{x:.3g} {unit}"


def page(found: dict[int, list[dict[str, Any]]]) -> str:
    """The page."""
    small, large = shapes(BLOCKS, WIDTH, KEYS), shapes(LARGE_BLOCKS, LARGE_WIDTH, LARGE_KEYS)
    own, size = sum(map(product, small)), ENTRY * sum(map(math.prod, small))
    rows: list[list[str]] = []
    for world, each in found.items():
        for mode in MODES[1:]:
            flops, sent = more(each, mode, "flops"), more(each, mode, "bytes")
            rows.append(
                [
                    mode,
                    str(world),
                    f"{max(flops) / own:.2f}",
                    f"{sum(flops) / own:.2f}",
                    f"{sum(sent) / world / size:.3f}",
                    calls(each[0], mode),
                ]
            )
    products = {m: sum(more(found[1], m, "flops")) / own for m in MODES[1:]}
    world = WORLDS[-1]
    # Bytes that all processes send together, per byte of the weights that does not stay at home.
    factor = sum(more(found[world], "project", "bytes")) / size / (world - 1) * world
    check = sum(more(found[2], "project", "bytes")) / size * 2
    gathers = sum(more(found[world], "parametrize", "bytes")) / size / (world - 1)

    total = sum(map(product, large))
    weights = ENTRY * sum(map(math.prod, large))
    owner = owners([product(shape) for shape in large], GPUS)
    loads = [0.0] * GPUS
    for shape, rank in zip(large, owner, strict=True):
        loads[rank] += product(shape)
    busiest, away = max(loads), (GPUS - 1) / GPUS
    model = 6 * PARAMETERS * TOKENS / GPUS
    project, parametrize = products["project"] * busiest, products["parametrize"] * total
    return f"""# Scale: processes, bytes and operations

`make scale` measures this page and writes it. How to train in several processes is told in
[DDP and FSDP](how_to/ddp_fsdp.md).

## What a step of several processes does

With `mode="project"` under `fully_shard`, tensor parallelism, or DDP after
[`share_projections`](reference/parameters.md), each matrix belongs to one process. That one is sent
the pieces of the matrix and of its gradient, computes, and sends back to each process the piece
that it has. This is done before the step, for gradients, and after it, for the matrices and the
moments: two all-to-all exchanges each, of all matrices together. Sets whose elements are rows or
entries that lie in one process each need no exchange. One or two all-reduces of a few bytes per
tensor let all processes decide alike about NaN and errors.

With `mode="parametrize"` each process computes each matrix from free parameters, which FSDP
gathers as it gathers any weight; and before and after the step it gathers them once more.

## Measured

{BLOCKS} blocks of orthogonal q, k, v and o, width {WIDTH}, {KEYS} rows in k and v; `fully_shard`,
AdamW, single precision, on the CPU with gloo. All numbers are what a step needs beyond that of the
plain model. A product is that of each matrix with a Gram matrix of its own: 2 n p min(n, p)
operations, counted by `torch.utils.flop_counter` in the code that runs. Bytes are in units of those
of the matrices.

{table(head, rows)}

## 70 billion parameters on {GPUS} GPUs

{LARGE_BLOCKS} blocks of width {LARGE_WIDTH}, 64 heads, 8 of them for keys and values: {len(large)}
matrices with {number(weights / ENTRY, "entries")}, {number(weights, "B")} in single precision. A
step has {TOKENS:,} tokens, for which the model itself needs 6 N = 6 x 70e9 operations each,
{number(model, "FLOP")} in each GPU.

Extrapolated from the table, with w = {GPUS} processes, and S bytes of matrices:

- **project**: bytes sent by a process c S (w - 1) / w^2, with c = {factor:.2f} from {world}
  processes and {check:.2f} from 2. The products of a process are {products["project"]:.2f} times
  those of its own matrices, which `owners` in `constrained/training/processes.py` deals out, the
  longest first.
- **parametrize**: bytes sent by a process c S (w - 1) / w, with c = {gathers:.2f} from {world}
  processes. The products of each process are {products["parametrize"]:.2f} times those of all
  matrices.

| per step | project | parametrize |
|---|---|---|
| operations in the busiest GPU | {number(project, "FLOP")} | {number(parametrize, "FLOP")} |
| in units of those of the model itself | {project / model:.2%} | {parametrize / model:.2%} |
| bytes sent by a GPU, on average | {number(factor * weights * away / GPUS, "B")} | {number(gathers * weights * away, "B")} |
| collectives beyond those of FSDP | {calls(found[world][0], "project")} | {_per_block(found[world][0])} |

There are fewer large matrices than GPUs, {sum(n == p for n, p in large)}, so that more GPUs than
that would not make the step of `project` shorter: the busiest GPU has one of them.

What is left out: how long an exchange takes on a real network, and that it can be overlapped with
nothing now. No GPUs were measured for this page.
"""


def _per_block(found: dict[str, Any]) -> str:
    """The collectives of parametrize, which grow with the number of matrices."""
    rest = {
        kind: (n - found["plain"]["calls"].get(kind, 0)) / (4 * BLOCKS)
        for kind, n in found["parametrize"]["calls"].items()
    }
    return ", ".join(f"{n * 4 * LARGE_BLOCKS:.0f} {kind}" for kind, n in sorted(rest.items()) if n)


def main() -> None:
    """Measure, and write the page."""
    PAGE.write_text(page(measured()))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        process(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
