"""The generated pages of docs/ are up to date."""

import re
import runpy
import tomllib
from pathlib import Path

import pytest

from constrained import testing

DOCS = Path(__file__).parents[2] / "docs"


class TestCompatibility:
    @pytest.fixture
    def script(self):
        return runpy.run_path(str(DOCS / "compatibility.py"))

    def test_a_row_takes_the_place_of_that_of_its_versions(self, script, tmp_path):
        page = tmp_path / "page.md"
        page.write_text(f"Before\n{script['START']}\n{script['END']}\nafter\n", "utf-8")
        for row in ("| 2.11.0 | 3.11.7 | a |", "| 2.6.0 | 3.11.7 | b |", "| 2.11.0 | 3.12.1 | c |"):
            script["write"](row, page)
        script["write"]("| 2.6.0 | 3.11.9 | d |", page)
        lines = page.read_text("utf-8").splitlines()
        assert [line.split("|")[3].strip() for line in lines[4:7]] == ["d", "a", "c"]
        assert lines[2] == script["HEAD"] and lines[0] == "Before" and lines[-1] == "after"

    def test_a_failure_is_named_with_what_it_says(self, script):
        outcomes = script["Outcomes"]()
        outcomes.failed = {f"tests/test_a.py::test_b[{i}]": f"no | {i}\nmore" for i in range(2)}
        assert "| 2<br>`test_a.py::test_b` (2): no 1 more |" in script["row"](outcomes, "1%", "1%")

    def test_the_oldest_torch_that_is_taken_has_been_tried(self):
        project = tomllib.loads((DOCS.parent / "pyproject.toml").read_text("utf-8"))["project"]
        (bound,) = [d for d in project["dependencies"] if d.startswith("torch")]
        floor = re.fullmatch(r"torch>=(\d+\.\d+)", bound)[1]
        rows = re.findall(r"^\| (\d+\.\d+)\.", (DOCS / "compatibility.md").read_text("utf-8"), re.M)
        assert floor in rows
        assert f"torch {floor}" in (DOCS.parent / "README.md").read_text("utf-8")


class TestScale:
    @pytest.fixture
    def text(self):
        return (DOCS / "scale.md").read_text("utf-8")

    def test_its_head_is_that_of_the_script(self, text):
        page = runpy.run_path(str(DOCS / "scale.py"))
        assert text.startswith(page["HEAD"]), "run `make scale`"
        assert (
            f"{page['BLOCKS']} blocks of orthogonal q, k, v and o, width {page['WIDTH']}," in text
        )

    def test_what_is_extrapolated_holds_for_both_numbers_of_processes(self, text):
        found = re.findall(r"c = ([\d.]+) measured with 2 and\s+([\d.]+) measured with 4", text)
        assert len(found) == 2
        assert all(float(two) == pytest.approx(float(four), rel=0.01) for two, four in found)


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


def test_what_is_said_of_evaluations_is_so():
    """The programs in docs/evaluation.md, which assert what the page says, run."""
    page = (DOCS / "evaluation.md").read_text("utf-8")
    programs = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(programs) == 4 and all("assert" in program for program in programs)
    names = {}
    for program in programs:
        exec(program, names)
