"""The code of the README and of the site's pages runs, and prints what they show."""

import runpy
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from constrained.constraint import registry

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "pages.py"))
PAGES = SCRIPT["pages"]()
HERE = [page for page in PAGES if not page.needs]


@pytest.fixture
def as_before(monkeypatch):
    """What a page registers or sets is gone afterwards."""
    registry.names()
    monkeypatch.setattr(registry, "_constraints", dict(registry._constraints))
    monkeypatch.setattr(registry, "_aliases", dict(registry._aliases))
    dtype = torch.get_default_dtype()
    yield
    torch.set_default_dtype(dtype)


def marks(page):
    return [pytest.mark.slow] if page.slow else []


@pytest.mark.parametrize("page", [pytest.param(p, id=p.name, marks=marks(p)) for p in HERE])
def test_its_code_runs_and_prints_what_it_shows(page, as_before, tmp_path):
    for block, printed in SCRIPT["run"](page, tmp_path):
        where = f"{page.name}:{block.line + 1}"
        assert SCRIPT["same"](block.code, printed), f"{where} shows\n{block.code}not\n{printed}"


def test_other_pages_are_run_with_their_libraries():
    """What needs a library that `make install` does not bring is run by `make test-clients`."""
    needed = {name for page in PAGES for name in page.needs}
    assert needed and not any(find_spec(name) for name in needed)
    requirements = (SCRIPT["ROOT"] / "clients" / "requirements.txt").read_text("utf-8")
    distributions = {"hydra": "hydra-core", "pyro": "pyro-ppl"}
    for name in needed:
        assert f"\n{distributions.get(name, name)}==" in requirements


def test_every_block_says_what_it_is():
    for page in PAGES:
        for block in page.blocks():
            assert block.language in SCRIPT["LANGUAGES"], f"{page.name}:{block.line}"
            assert block.language != "console" or block.code.startswith("$ ")


class TestComparing:
    def test_rounding_is_no_difference(self):
        assert SCRIPT["same"]("loss 0.1234  3e-07\n", "loss 0.1229 5e-07\n")

    @pytest.mark.parametrize(
        "other", ["loss 0.13\n", "lost 0.12\n", "loss 0.12 0.12\n", "", "loss 12\n", "loss -0.12\n"]
    )
    def test_another_number_word_or_length_is(self, other):
        assert not SCRIPT["same"]("loss 0.12\n", other)

    def test_what_is_printed_has_to_be_shown(self, tmp_path):
        page = SCRIPT["Page"](SCRIPT["ROOT"] / "a.md", "```python\nprint(1)\n```\n")
        with pytest.raises(AssertionError, match="does not show '1"):
            SCRIPT["run"](page, tmp_path)
