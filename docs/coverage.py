"""Measure which branches of the code the tests reach, and write ``docs/coverage.md``.

The tests are those that take seconds, and of the laws a share: each law is one function on many
cases, and a line that one case reaches another seldom misses.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
PAGE = Path(__file__).with_suffix(".md")

HEAD = """# Coverage

Written by `make coverage`: the share of the statements and branches that the tests reach which take
seconds, each folder of the code for itself. {facts}

What is not reached is mostly of three kinds: fallbacks for other versions of torch than this one
(`torch_internals`; `make compat` runs them); code that is compiled, or runs elsewhere, which
a tracer of lines does not see; and code for other libraries (`make test-clients` runs it).
"""


@dataclass
class Counts:
    """How much of a room there is, and how much of it was reached.

    Attributes:
        statements: how many statements there are.
        missed: how many of them were not reached.
        branches: how many ways there are on from a condition.
        missed_branches: how many of them were not taken.
    """

    statements: int = 0
    missed: int = 0
    branches: int = 0
    missed_branches: int = 0

    def add(self, summary: Mapping[str, Any]) -> None:
        """Add what the report says of one file."""
        self.statements += summary["num_statements"]
        self.missed += summary["missing_lines"]
        self.branches += summary["num_branches"]
        self.missed_branches += summary["missing_branches"]

    @property
    def share(self) -> float:
        """The share of the statements and branches that was reached, as coverage.py counts it."""
        there = self.statements + self.branches
        return 1 - (self.missed + self.missed_branches) / there if there else 1.0


def by_room(files: Mapping[str, Any]) -> dict[str, Counts]:
    """The counts of each folder, and of both packages."""
    rooms: dict[str, Counts] = {}
    for name, report in sorted(files.items()):
        package, *rest = Path(name).parts
        room = f"{package}/{rest[0]}" if len(rest) > 1 else package
        for key in (room, f"all of {package}"):
            rooms.setdefault(key, Counts()).add(report["summary"])
    return dict(sorted(rooms.items(), key=lambda item: (item[0].startswith("all"), item[0])))


def table(rooms: Mapping[str, Counts]) -> str:
    """The counts in Markdown."""
    lines = ["| | statements | not reached | branches | not taken | reached |"]
    lines.append("|---|---:|---:|---:|---:|---:|")
    for name, c in rooms.items():
        name = name if name.startswith("all") else f"`{name}`"
        counts = f"{c.statements} | {c.missed} | {c.branches} | {c.missed_branches}"
        lines.append(f"| {name} | {counts} | {100 * c.share:.1f} % |")
    return "\n".join(lines)


def run(arguments: Iterable[str]) -> Mapping[str, Any]:
    """The report of a run of the tests, by file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "coverage.json"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow"]
        cov = ["--cov", "--cov-branch", f"--cov-report=json:{path}", "--cov-report="]
        done = subprocess.run([*command, *cov, *arguments], cwd=ROOT, check=False)
        # 1: tests failed. They reach what they reach, and `make test` is about them.
        if done.returncode not in (0, 1) or not path.exists():
            sys.exit(f"pytest ended with {done.returncode}")
        return json.loads(path.read_text("utf-8"))["files"]


def main() -> None:
    """Run the tests and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side")
    parser.add_argument("--share", type=float, default=1.0, help="the share of the tests, 0 to 1")
    parser.add_argument("--law-share", type=float, default=0.25, help="the share of the laws")
    parser.add_argument("tests", nargs="*", help="files or folders; all by default")
    given = parser.parse_args()
    jobs = ["-n", str(given.jobs)] if given.jobs > 1 else []
    shares = [f"--share={given.share}", f"--law-share={given.law_share}"]
    rooms = by_room(run([*jobs, *shares, *given.tests]))
    version = torch.__version__.partition("+")[0]
    where = f" in {', '.join(given.tests)}" if given.tests else ""
    which = f"{given.share:.0%} of the tests, {given.law_share:.0%} of the laws"
    facts = f"torch {version}; {which}{where}."
    PAGE.write_text(f"{HEAD.format(facts=facts)}\n{table(rooms)}\n", "utf-8")
    print(table(rooms))


if __name__ == "__main__":
    main()
