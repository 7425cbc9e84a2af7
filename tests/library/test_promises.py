"""Every promise has tests, and the table in docs/engine.md is what they measured."""

import ast
import functools
import re
from pathlib import Path

import pytest

from tests.promises import table
from tests.promises.__main__ import END, INDEX, START, write

PAGE = Path(__file__).parents[2] / "docs" / "engine.md"


@functools.cache
def named() -> dict[str, list[tuple[str, bool]]]:
    """For each promise its test functions, and whether each is about torch's engine."""
    found: dict[str, list[tuple[str, bool]]] = {key: [] for key in table.PROMISES}
    for path in table.FOLDER.glob("test_*.py"):
        for key, nodes in table.ids_in(path).items():
            for node in nodes:
                of_torch = any("torch_today" in ast.unparse(d) for d in node.decorator_list)
                found[key].append((node.name, of_torch))
    return found


def test_the_index_by_subject_is_up_to_date():
    assert table.index() in INDEX.read_text("utf-8"), "run `python -m tests.promises --index`"


@pytest.mark.parametrize("key", table.PROMISES)
def test_every_promise_has_tests(key):
    assert [name for name, of_torch in named()[key] if not of_torch]


@pytest.mark.parametrize("key", [key for key in table.PROMISES if key.startswith("E")])
def test_every_limit_that_is_lifted_is_shown_on_torch(key):
    assert [name for name, of_torch in named()[key] if of_torch]


def test_the_table_is_of_these_promises_and_all_were_kept():
    rows = re.findall(
        r"^\| ([KE]\d\d?) \| (.*?) \| (.*?) \| (.*?) \|$", PAGE.read_text("utf-8"), re.M
    )
    assert [(key, promise) for key, promise, *_ in rows] == list(table.PROMISES.items())
    for key, _, torch, here in rows:
        for seen, of_torch in ((here, False), (torch, True)):
            tests = [name for name, other in named()[key] if other is of_torch]
            count = re.search(r"\((\d+)\)$", seen)
            # A failure is written "3 of 4".
            assert (int(count[1]) if count else 0) >= len(tests), f"{key}: run `make promises`"


def test_the_table_tells_a_failure():
    outcomes = table.Outcomes()
    outcomes.here["E06"].passed, outcomes.here["E06"].failed = 3, 1
    assert "| (3 of 4) |" in outcomes.table()


def test_a_promise_that_was_not_tried_keeps_its_row(tmp_path):
    def written(key):
        outcomes = table.Outcomes()
        outcomes.here[key] = table.Seen(passed=2)
        write(outcomes.table(), page)
        return page.read_text("utf-8")

    page = tmp_path / "page.md"
    page.write_text(f"Before\n{START}\n{END}\nafter\n", "utf-8")
    first, second = written("E03"), written("E05")
    assert first.count(table.NOT_RUN) == len(table.PROMISES) - 1
    assert second.count(table.NOT_RUN) == len(table.PROMISES) - 2
    assert second.startswith(f"Before\n{START}\n| | promise |")
    assert second.endswith(f"\n{END}\nafter\n")
