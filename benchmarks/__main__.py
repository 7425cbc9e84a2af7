"""``python -m benchmarks [group ...]``: run rows, print them as a table, write them as JSON."""

from __future__ import annotations

import sys

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import (
    batches,
    calling,
    catalogue,
    compiling,
    evaluating,
    layers,
    memory,
    models,
    projecting,
    reading,
    registering,
    training,
)
from benchmarks.harness import Timing, save
from benchmarks.targets import show_targets
from benchmarks.yardsticks import run as yardsticks
from benchmarks.yardsticks import tables

GROUPS = {
    "reading": (reading.recurrent_loop, reading.evaluation, reading.bare_read),
    "calling": (calling.called_often,),
    "evaluating": (evaluating.evaluation,),
    "compiling": (compiling.compilation,),
    "training": (training.training,),
    "batches": (batches.small_matrices,),
    "layers": (layers.many_layers, layers.transformer, layers.encoder, layers.attention),
    "models": (models.convolutions, models.embedding, models.accumulating),
    "projecting": (projecting.projecting,),
    "registering": (registering.registration,),
    "memory": (memory.bytes_held,),
    "catalogue": (catalogue.every_constraint,),
}


def main(groups: list[str]) -> None:
    """Run groups of benchmarks, on one thread; by default all but the yardsticks."""
    torch.set_num_threads(1)
    for unknown in set(groups) - {*GROUPS, "yardsticks"}:
        sys.exit(f"There is no group {unknown!r}; there are {', '.join(GROUPS)}, yardsticks.")
    if "yardsticks" in groups:
        yardsticks.main()
    for group in [g for g in groups if g != "yardsticks"] if groups else GROUPS:
        timings = [timing for measure in GROUPS[group] for timing in measure()]
        path = save(group, timings)
        _show(timings)
        print(f"Written to {path}")
    if groups != ["yardsticks"]:
        show_targets()
        tables.show_targets(yardsticks.load())


def _show(timings: list[Timing]) -> None:
    table = Table(title="One thread; ratio to the first contender of the row, round by round")
    for heading in ("row", "contender", "ms", "ratio", "quartiles of the ratio"):
        table.add_column(heading)
    for t in timings:
        first, third = t.ratio_quartiles
        table.add_row(
            t.row,
            t.contender,
            f"{t.milliseconds:.4g}",
            f"{t.ratio:.3f}",
            f"{first:.3f} - {third:.3f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
