"""Run the tests with other processors' instructions: ``python -m tests.library.processors``.

The instructions that compute a sum, and so the order of its rounding errors, depend on the
processor and on the number of threads. The libraries behind torch can be told to use fewer
instructions than available. A test that passes under one setting and fails under another depends
on rounding: its bound, its start, or what it tests is wrong.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]

#: Vector instructions of x86, from the fewest to the most, as torch names them.
LEVELS = ("DEFAULT", "AVX2", "AVX512")

#: The message for a setting that was left out.
LACKING = "not on this processor"

HEAD = """# Processors

Written by `make test-processors`. In which order numbers are summed, and so how a result is
rounded, depends on the instructions of the processor and on the number of threads. Each row is a
run of the same tests under another setting of the libraries behind torch.
"""


@dataclass(frozen=True)
class Setting:
    """An environment for the tests.

    Attributes:
        name: what it stands for.
        environment: variables that are set, beside those of the process.
        level: the least instructions that the processor must have.
    """

    name: str
    environment: dict[str, str]
    level: str = "DEFAULT"


def instructions(aten: str, mkl: str, onednn: str) -> dict[str, str]:
    """The environment variables that tell ATen, MKL and oneDNN which instructions to use."""
    return {
        "ATEN_CPU_CAPABILITY": aten,
        "MKL_ENABLE_INSTRUCTIONS": mkl,
        "ONEDNN_MAX_CPU_ISA": onednn,
    }


ONE, TWO = {"OMP_NUM_THREADS": "1"}, {"OMP_NUM_THREADS": "2"}
SETTINGS = (
    Setting("as the machine is", ONE),
    Setting("two threads", TWO),
    Setting("SSE4", ONE | instructions("default", "SSE4_2", "SSE41")),
    Setting("AVX2", ONE | instructions("avx2", "AVX2", "AVX2"), "AVX2"),
    Setting("AVX-512", ONE | instructions("avx512", "AVX512", "AVX512_CORE"), "AVX512"),
    Setting("the same on every processor", ONE | {"MKL_CBWR": "COMPATIBLE"}),
    Setting("AVX2, two threads", TWO | {"MKL_CBWR": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}, "AVX2"),
)


@dataclass(frozen=True)
class Outcome:
    """The outcome of the tests under a setting.

    Attributes:
        passed: how many tests passed.
        failed: the names of those that did not.
        problem: why there is no result, if there is none.
    """

    passed: int = 0
    failed: tuple[str, ...] = ()
    problem: str = ""


def capability() -> str:
    """The instructions that this processor has, as torch names them."""
    code = "import torch; print(torch.backends.cpu.get_cpu_capability())"
    bare = {key: value for key, value in os.environ.items() if key != "ATEN_CPU_CAPABILITY"}
    return subprocess.check_output([sys.executable, "-c", code], env=bare, text=True).strip()


def can_run(setting: Setting, available: str) -> bool:
    """Whether a processor has the instructions of a setting. If not, torch would still use them."""
    known = LEVELS.index(available) if available in LEVELS else 0
    return LEVELS.index(setting.level) <= known


def run(setting: Setting, arguments: Sequence[str]) -> Outcome:
    """Run pytest with ``arguments`` under a setting."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider"]
        ended = subprocess.run(
            [*command, f"--junitxml={report}", *arguments],
            env=os.environ | setting.environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        # 0: all have passed; 1: some have failed. All else is no result.
        if ended.returncode not in (0, 1) or not report.exists():
            print(ended.stdout[-2000:])
            return Outcome(problem=f"pytest ended with {ended.returncode}")
        if ended.returncode:
            print(ended.stdout[-20000:])
        cases = list(ET.parse(report).iter("testcase"))
    failed = [case for case in cases if case.find("failure") is not None or is_error(case)]
    skipped = sum(case.find("skipped") is not None for case in cases)
    names = sorted(f"{case.get('classname')}::{case.get('name')}" for case in failed)
    return Outcome(len(cases) - len(failed) - skipped, tuple(names))


def is_error(case: ET.Element) -> bool:
    """Whether a test failed in setup or teardown."""
    return case.find("error") is not None


def table(rows: Iterable[tuple[Setting, Outcome]]) -> str:
    """The outcomes in Markdown: a row for each setting, and the names of failed tests."""
    lines = ["| setting | environment | passed | failed |", "|---|---|---:|---:|"]
    names = []
    for setting, outcome in rows:
        environment = " ".join(f"`{key}={value}`" for key, value in setting.environment.items())
        counts = f"{outcome.passed} | {len(outcome.failed)}"
        result = f"{outcome.problem} | " if outcome.problem else counts
        lines.append(f"| {setting.name} | {environment} | {result} |")
        names += [f"- {setting.name}: `{name}`" for name in outcome.failed]
    return "\n".join([*lines, "", *(names or ["No test failed under any of them."]), ""])


def main() -> int:
    """Run the tests under every setting that this processor supports, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--share", type=float, default=1.0, help="the share of the tests, 0 to 1")
    parser.add_argument("--law-share", type=float, default=1.0, help="the share of the laws")
    parser.add_argument("--seed", type=int, default=0, help="which tests are in a share")
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side")
    parser.add_argument("tests", nargs="*", help="files or folders; all by default")
    parser.add_argument("--table", type=Path, help="write the page of the docs to this file")
    given = parser.parse_args()
    available = capability()
    shares = (f"--share={given.share}", f"--law-share={given.law_share}")
    arguments = ["-m", "not slow", *shares, f"--share-seed={given.seed}", *given.tests]
    arguments += ["-n", str(given.jobs)] if given.jobs > 1 else []
    rows = []
    for setting in SETTINGS:
        if can_run(setting, available):
            outcome = run(setting, arguments)
        else:
            outcome = Outcome(problem=LACKING)
        rows.append((setting, outcome))
        print(setting.name, outcome, flush=True)
    page = "\n".join([HEAD, facts(given, available), table(rows)])
    print(page)
    if given.table:
        given.table.write_text(page, "utf-8")
    return int(any(outcome.failed or outcome.problem not in ("", LACKING) for _, outcome in rows))


def facts(given: argparse.Namespace, available: str) -> str:
    """The versions and the processor on which the tests ran, and the share of the tests."""
    version, where = torch.__version__.partition("+")[0], ", ".join(given.tests)
    shares = f"{given.share:.1%} of the tests that are not slow, {given.law_share:.1%} of the laws"
    which = f"{shares}{where and ' in ' + where} (seed {given.seed})"
    return f"torch {version} on a processor with {available} instructions; {which}.\n"


if __name__ == "__main__":
    sys.exit(main())
