"""``python -m benchmarks.report``: put tables and pictures of the results where they are shown."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.pictures import against_peers, against_targets, catalogue_costs
from benchmarks.targets import markdown, measured, projected_markdown
from benchmarks.yardsticks import tables
from benchmarks.yardsticks.run import load

ROOT = Path(__file__).resolve().parent.parent
#: The files with tables between marks.
SHOWN_IN = (ROOT / "docs" / "speed.md", ROOT / "docs" / "yardsticks.md")


def with_tables(text: str) -> str:
    """A document with the tables as they are now.

    Each stands between ``<!-- NAME: written by `COMMAND` -->`` and ``<!-- end of NAME -->``.
    """
    attempts = load()
    for name, table in {
        "targets": lambda: markdown(measured()),
        "targets of mode project": lambda: projected_markdown(measured()),
        "yardsticks' targets": lambda: tables.markdown_targets(attempts),
        "yardsticks": lambda: tables.markdown(attempts),
    }.items():
        marked = rf"(<!-- {name}: [^>]*-->\n).*?(<!-- end of {name} -->)"
        if re.search(marked, text, re.DOTALL):
            new = f"\n{table()}\n"
            text = re.sub(marked, lambda m: m[1] + new + m[2], text, flags=re.DOTALL)  # noqa: B023
    return text


def main() -> None:
    """Write the tables into the documents, and the pictures beside them."""
    for path in SHOWN_IN:
        path.write_text(with_tables(path.read_text()))
    for name, draw in {
        "peers": against_peers,
        "targets": against_targets,
        "catalogue_costs": catalogue_costs,
    }.items():
        draw().savefig(ROOT / "docs" / f"speed_{name}.png", dpi=80, bbox_inches="tight")
    picture = tables.picture(load())
    picture.savefig(ROOT / "docs" / "yardsticks.png", dpi=80, bbox_inches="tight")


if __name__ == "__main__":
    main()
