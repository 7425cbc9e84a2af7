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
BLOCKS, WIDTH, KEYS = 2, 1024, 128

#: The model of the page: 80 blocks of width 8192 with 8 of 64 heads for keys and values.
LARGE_BLOCKS, LARGE_WIDTH, LARGE_KEYS, PARAMETERS, GPUS = 80, 8192, 1024, 70e9, 512

#: The learning rate of the measured steps.
RATE = 1e-3

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
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)

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


def table(*rows: list[str]) -> str:
    """A table of Markdown, whose first row is the head."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


HEAD = """# Scale: processes, bytes and operations

`make scale` measures this page and writes it. How to train in several processes is told in
[DDP and FSDP](how_to/ddp_fsdp.md).

## What several processes do in a step

Under `fully_shard` and tensor parallelism each process has a piece of each matrix. For sets whose
elements are rows or entries that lie in one process each, as those of `sphere` and `nonnegative`,
each process treats its own. Any other matrix is the work of one process: that one is sent the
pieces, computes, and sends back to each process the piece that it has. This is done before the
step, for gradients, and after it, for the matrices and with `mode="project"` for the moments of the
optimizer: two all-to-all exchanges each time, of all matrices together. The same is done under DDP
after [`share_projections`](reference/parameters.md), with whole matrices.

With `mode="parametrize"` each process moreover computes every matrix from its free parameters in
the forward pass, and its gradient in the backward pass: FSDP gathers the free parameters as it
gathers any weight.

All-reduces of four numbers per tensor let the processes decide alike about NaN and errors.
"""


def page(found: dict[int, list[dict[str, Any]]]) -> str:
    """The page."""
    small, large = shapes(BLOCKS, WIDTH, KEYS), shapes(LARGE_BLOCKS, LARGE_WIDTH, LARGE_KEYS)
    own, size = sum(map(product, small)), ENTRY * sum(map(math.prod, small))
    rows = [
        ["mode", "processes", "products, busiest process", "products, all", "bytes sent", "more"]
    ]
    for world, each in found.items():
        for mode in MODES[1:]:
            flops, sent = more(each, mode, "flops"), more(each, mode, "bytes")
            rows.append(
                [
                    f"`{mode}`",
                    str(world),
                    f"{max(flops) / own:.2f}",
                    f"{sum(flops) / own:.2f}",
                    f"{sum(sent) / world / size:.3f}",
                    calls(each[0], mode),
                ]
            )
    total, weights = sum(map(product, large)), ENTRY * sum(map(math.prod, large))
    loads = [0.0] * GPUS
    for shape, rank in zip(large, owners([*map(product, large)], GPUS), strict=True):
        loads[rank] += product(shape)
    model = 6 * PARAMETERS * TOKENS / GPUS
    formulas: list[str] = []
    flops_row, part_row = ["operations, busiest GPU"], ["in units of those of the model"]
    bytes_row, calls_row = ["bytes sent by a GPU, on average"], ["collectives beyond those of FSDP"]
    for mode in MODES[1:]:
        every, shared = products(found, mode)
        factors = {w: sent_factor(found[w], mode) / size for w in WORLDS if w > 1}
        factor = factors[max(WORLDS)]
        flops = every * total + shared * max(loads)
        formulas.append(
            f"- `{mode}`: {every:.2f} products of each matrix in every process, and {shared:.2f}\n"
            "  in one of them. A process sends c S (w - 1) / w^2 bytes on average, with c = "
            + " and\n  ".join(f"{c:.2f} measured with {w}" for w, c in factors.items())
            + " processes."
        )
        flops_row.append(number(flops, "FLOP"))
        part_row.append(f"{flops / model:.1%}")
        bytes_row.append(number(factor * weights * (GPUS - 1) / GPUS**2, "B"))
        calls_row.append(calls(found[max(WORLDS)][0], mode))
    answer = table(
        ["a step", *(f"`{m}`" for m in MODES[1:])], flops_row, part_row, bytes_row, calls_row
    )
    squares = sum(n == p for n, p in large)
    return f"""{HEAD}
## Measured

{BLOCKS} blocks of orthogonal q, k, v and o, width {WIDTH}, {KEYS} rows in k and v; `fully_shard`,
AdamW, single precision, on the CPU with gloo. All numbers are what a step costs beyond that of the
same model without constraints. A product is that of each matrix with a Gram matrix of its own:
2 n p min(n, p) operations, counted by `torch.utils.flop_counter` in the code that runs. Bytes are
those that a process sends on average, in units of those of all matrices; the last column has the
collectives of a step, however many matrices there are.

{table(*rows)}

## 70 billion parameters on {GPUS} GPUs

{LARGE_BLOCKS} blocks of width {LARGE_WIDTH} with 64 heads, 8 of them for keys and values, have
{len(large)} orthogonal matrices with {weights / ENTRY / 1e9:.1f} billion entries,
{number(weights, "B")} in single precision. A step has {TOKENS:,} tokens. The model itself needs six
operations per parameter and token for it, {number(model, "FLOP")} in each GPU.

The table above gives, for w processes and S bytes of matrices:

{chr(10).join(formulas)}

So for w = {GPUS}, with the matrices dealt out by `owners` in `constrained/training/processes.py`:

{answer}

The busiest GPU has one of the {squares} square matrices. Their number, not that of the GPUs, limits
how short the step becomes: beyond {squares} GPUs it is as long as with {squares}. While it works on
it, such a GPU holds {number(ENTRY * LARGE_WIDTH**2, "B")} for each of the tensors that it is sent:
the matrix, its gradient, or its moments.

The numbers of products are those of steps with learning rate {RATE:g} at width {WIDTH}: a longer
step may need more of them.

What this page does not tell is time: no network of GPUs was measured, and the exchanges do not
overlap with anything.
"""


def products(found: dict[int, list[dict[str, Any]]], mode: str) -> tuple[float, float]:
    """How many products of each matrix every process makes, and how many one of them makes.

    With w processes all of them together make ``every * w + shared``.
    """
    own = sum(map(product, shapes(BLOCKS, WIDTH, KEYS)))
    first, last = WORLDS[0], WORLDS[-1]
    few, many = (sum(more(found[w], mode, "flops")) / own for w in (first, last))
    every = (many - few) / (last - first)
    return every, few - every * first


def sent_factor(found: list[dict[str, Any]], mode: str) -> float:
    """The bytes that all processes send, over the part of a tensor that does not stay at home."""
    world = len(found)
    return sum(more(found, mode, "bytes")) * world / (world - 1)


def main() -> None:
    """Measure, and write the page."""
    PAGE.write_text(page(measured()))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        process(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
