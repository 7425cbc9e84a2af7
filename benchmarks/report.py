"""``python -m benchmarks.report``: put tables and pictures of the results where they are shown."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.pictures import against_peers, against_targets, catalogue_costs
from benchmarks.targets import markdown, measured, projected_markdown

ROOT = Path(__file__).resolve().parent.parent
#: The files with the table between these two marks.
SHOWN_IN = (ROOT / "docs" / "speed.md",)
BEGIN, END = "<!-- targets: written by `make bench` -->\n", "<!-- end of targets -->"
BEGIN_PROJECTED = "<!-- targets of mode project: written by `make bench` -->\n"


def with_table(text: str) -> str:
    """A document with the tables of targets as they are now."""
    rows = measured()
    for begin, content in (
        (BEGIN, markdown(rows)),
        (BEGIN_PROJECTED, projected_markdown(rows)),
    ):
        table = f"{begin}\n{content}\n{END}"
        pattern = re.escape(begin) + ".*?" + re.escape(END)
        text = re.sub(pattern, lambda _, table=table: table, text, flags=re.DOTALL)
    return text


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
