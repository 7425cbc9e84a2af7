"""``python -m benchmarks.report``: put tables and pictures of the results where they are shown."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.pictures import against_peers, against_targets, catalogue_costs
from benchmarks.targets import markdown, measured

ROOT = Path(__file__).resolve().parent.parent
#: The files with the table between these two marks.
SHOWN_IN = (ROOT / "docs" / "speed.md",)
BEGIN, END = "<!-- targets: written by `make bench` -->\n", "<!-- end of targets -->"


def with_table(text: str) -> str:
    """A document with the table of targets as it is now."""
    table = f"{BEGIN}\n{markdown(measured())}\n{END}"
    return re.sub(re.escape(BEGIN) + ".*?" + re.escape(END), lambda _: table, text, flags=re.DOTALL)


def main() -> None:
    """Write the table into the documents, and the pictures beside them."""
    for path in SHOWN_IN:
        path.write_text(with_table(path.read_text()))
    for name, draw in {
        "peers": against_peers,
        "targets": against_targets,
        "catalogue_costs": catalogue_costs,
    }.items():
        draw().savefig(ROOT / "docs" / f"speed_{name}.png", dpi=80, bbox_inches="tight")


if __name__ == "__main__":
    main()
