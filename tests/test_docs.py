"""The page of the catalogue is the one that the docstrings give."""

import runpy
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def test_the_catalogue_is_up_to_date():
    render = runpy.run_path(str(DOCS / "catalogue.py"))["render"]
    assert (DOCS / "catalogue.md").read_text("utf-8") == render(), "run `make catalogue`"
