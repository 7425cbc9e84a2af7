"""The code of the pages about other libraries runs, and prints what they show."""

import runpy
from pathlib import Path

import pytest

SCRIPT = runpy.run_path(str(Path(__file__).parents[1] / "docs" / "pages.py"))
PAGES = [page for page in SCRIPT["pages"]() if page.needs]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_its_code_runs_and_prints_what_it_shows(page, tmp_path):
    for block, printed in SCRIPT["run"](page, tmp_path):
        where = f"{page.name}:{block.line + 1}"
        assert SCRIPT["same"](block.code, printed), f"{where} shows\n{block.code}not\n{printed}"
