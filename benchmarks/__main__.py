"""``python -m benchmarks``: run all rows, print them as a table, write them as JSON."""

from __future__ import annotations

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import reading
from benchmarks.harness import save


def main() -> None:
    """Run the benchmarks on one thread."""
    torch.set_num_threads(1)
    timings = [*reading.recurrent_loop(), *reading.evaluation(), *reading.bare_read()]
    path = save("reading", timings)
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
    console = Console()
    console.print(table)
    console.print(f"Written to {path}")


if __name__ == "__main__":
    main()
