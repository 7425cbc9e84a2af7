"""The pages that are generated are those that would be generated now."""

import re
import runpy
from pathlib import Path

import pytest

from constrained import testing

DOCS = Path(__file__).parents[1] / "docs"


def test_the_catalogue_is_up_to_date():
    render = runpy.run_path(str(DOCS / "catalogue.py"))["render"]
    assert (DOCS / "catalogue.md").read_text("utf-8") == render(), "run `make catalogue`"


class TestAccuracy:
    @pytest.fixture
    def page(self):
        return runpy.run_path(str(DOCS / "accuracy.py"))

    @pytest.fixture
    def rows(self):
        lines = (DOCS / "accuracy.md").read_text("utf-8").splitlines()
        return [re.split(r" *\| *", line.strip("| ")) for line in lines if line.startswith("| `")]

    def test_it_has_a_row_for_every_case(self, page, rows):
        expected = [page["label"](case) for case in page["cases"]()]
        assert [row[0] for row in rows] == expected, "run `make accuracy`"

    def test_its_head_is_that_of_the_script(self, page):
        assert (DOCS / "accuracy.md").read_text("utf-8").startswith(page["HEAD"])

    def test_it_holds_what_the_laws_promise(self, rows):
        measured = [float(row[3]) for row in rows if row[2] != "0"]
        assert measured and max(measured) <= 1e-3
        assert max(float(row[4]) for row in rows) <= 1e-4

    def test_a_row_is_what_is_measured(self, page, rows):
        case = next(case for case in page["cases"]() if case.cls.name == "symmetric")
        assert page["row"](case).startswith("| `symmetric()` | 5 x 5 | 24 | ")
        testing.adam_reaches_the_optimum(case)
