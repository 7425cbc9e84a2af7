"""The page on coverage: which lines are counted, and where the figures are written."""

from __future__ import annotations

import runpy
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "docs" / "coverage.py"


def report(statements, missed, branches, missed_branches):
    return {
        "summary": {
            "num_statements": statements,
            "missing_lines": missed,
            "num_branches": branches,
            "missing_branches": missed_branches,
        }
    }


def test_files_are_added_up_by_folder_and_by_package():
    script = runpy.run_path(str(SCRIPT))
    rooms = script["by_room"](
        {
            "constrained/model/lazy.py": report(10, 2, 4, 2),
            "constrained/model/report.py": report(6, 0, 0, 0),
            "constrained/register_features.py": report(0, 0, 0, 0),
            "constraints/vectors/ball.py": report(5, 0, 0, 0),
        }
    )
    assert list(rooms) == [
        "constrained",
        "constrained/model",
        "constraints/vectors",
        "all of constrained",
        "all of constraints",
    ]
    assert script["table"](rooms).splitlines()[2:] == [
        "| `constrained` | 0 | 0 | 0 | 0 | 100.0 % |",
        "| `constrained/model` | 16 | 2 | 4 | 2 | 80.0 % |",
        "| `constraints/vectors` | 5 | 0 | 0 | 0 | 100.0 % |",
        "| all of constrained | 16 | 2 | 4 | 2 | 80.0 % |",
        "| all of constraints | 5 | 0 | 0 | 0 | 100.0 % |",
    ]
