"""Run the laws, the promises and the tests under the torch that is installed, and write a row.

``make compat TORCH=2.11.0`` makes an environment for this, and runs it there.
"""

from __future__ import annotations

import argparse
import platform
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

PAGE = Path(__file__).with_suffix(".md")
START, END = "<!-- table: generated -->", "<!-- end of table -->"
HEAD = "| torch | Python | laws | tests | passed | failed | private parts that it lacks |"

#: So many of the tests that fail are named in a row, and so much of what each of them says.
_NAMED, _SAID = 12, 160


class Outcomes:
    """A plugin that counts what passed, and notes what failed and why."""

    def __init__(self) -> None:
        self.passed = 0
        self.failed: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Note the outcome of a test."""
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            said = str(crash.message if crash else report.longrepr).strip()
            self.failed[report.nodeid] = said.partition("\n")[0]
            # At once: a run may take long.
            print(f"\n{report.nodeid}: {self.failed[report.nodeid]}", flush=True)
        elif report.passed and report.when == "call":
            self.passed += 1

    def pytest_collectreport(self, report: Any) -> None:
        """Note a file that could not be read."""
        if report.failed:
            self.failed[report.nodeid] = str(report.longrepr).strip().splitlines()[-1]


def row(outcomes: Outcomes, laws: str, tests: str) -> str:
    """The row of this torch in the table."""
    from constrained.torch_internals import missing

    cells = [
        torch.__version__.partition("+")[0],
        platform.python_version(),
        laws,
        tests,
        f"{outcomes.passed:,}",
        _failures(outcomes.failed),
        ", ".join(f"`{part}`" for part in missing()) or "none",
    ]
    return f"| {' | '.join(cells)} |"


def _failures(failed: dict[str, str]) -> str:
    """How many failed, and what the tests say, one line for each function."""
    functions = Counter(name.partition("[")[0].rpartition("/")[2] for name in failed)
    said = {name.partition("[")[0].rpartition("/")[2]: text for name, text in failed.items()}
    lines = [str(len(failed))]
    for name, count in functions.most_common(_NAMED):
        text = re.sub(r"[|`<>\s]+", " ", said[name])[:_SAID].strip()
        lines.append(f"`{name}` ({count}): {text}")
    return "<br>".join(lines)


def write(new: str, page: Path = PAGE) -> None:
    """Put a row into the table of a page, in the place of one for the same versions, if any."""
    text = page.read_text("utf-8")
    before, _, rest = text.partition(START)
    table, _, after = rest.partition(END)
    rows = {_versions(line): line for line in table.splitlines() if re.match(r"\| \d", line)}
    rows[_versions(new)] = new
    ordered = [rows[key] for key in sorted(rows)]
    rule = re.sub(r"[^|]+", "---", HEAD)
    page.write_text("\n".join([f"{before}{START}", HEAD, rule, *ordered, f"{END}{after}"]), "utf-8")


def _versions(line: str) -> tuple[tuple[int, ...], ...]:
    """What a row is for: torch, and Python without its last number."""
    _, of_torch, of_python, *_ = line.split("|")
    numbers = [tuple(map(int, re.findall(r"\d+", cell))) for cell in (of_torch, of_python)]
    return numbers[0], numbers[1][:2]


def main() -> int:
    """Run and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", type=float, default=1.0, help="the share of the tests, 0 to 1")
    parser.add_argument("--law-share", type=float, default=1.0, help="the share of the laws")
    parser.add_argument("--seed", type=int, default=0, help="which tests are in a share")
    given = parser.parse_args()
    outcomes = Outcomes()
    shares = [f"--share={given.share}", f"--law-share={given.law_share}"]
    chosen = ["-q", "-m", "not slow", "-p", "no:cacheprovider", *shares]
    code = pytest.main([*chosen, f"--share-seed={given.seed}"], plugins=[outcomes])
    if not outcomes.passed:
        print("No test has run.", file=sys.stderr)
        return int(code) or 1
    write(row(outcomes, f"{100 * given.law_share:g}%", f"{100 * given.share:g}%"))
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
