"""The pages of the catalogue: current, complete, with examples that run and pictures to read."""

import inspect
import re
import runpy
from itertools import combinations
from pathlib import Path

import pytest
import torch

from constrained import assert_feasible, get, names

DOCS = Path(__file__).parents[2] / "docs"
FOLDER = DOCS / "catalogue"
SCRIPT = runpy.run_path(str(DOCS / "catalogue.py"))
PICTURES = runpy.run_path(str(DOCS / "pictures.py"))
NAMES = [name for name in names() if get(name).__module__.startswith("constraints.")]


@pytest.fixture(scope="module")
def pages():
    return SCRIPT["render"]()


def test_the_pages_are_current(pages):
    found = {path.name: path.read_text("utf-8") for path in FOLDER.glob("*.md")}
    assert found.keys() == pages.keys()
    assert [name for name in pages if found[name] != pages[name]] == [], "run `make catalogue`"


def test_every_set_has_one_section_and_one_row(pages):
    sections = re.findall(r"^## `(\w+)`", "".join(pages.values()), re.M)
    rows = re.findall(r"^\| \[`(\w+)`\]\(\w+\.md#[\w-]+\) \| \$", pages["index.md"], re.M)
    assert sorted(sections) == sorted(rows) == NAMES


def test_a_set_without_a_page_is_named(monkeypatch):
    families = SCRIPT["render"].__globals__["FAMILIES"]
    fewer = [family for family in families if "hurwitz" not in family.members]
    monkeypatch.setitem(SCRIPT["render"].__globals__, "FAMILIES", fewer)
    with pytest.raises(AssertionError, match=r"in FAMILIES: \['hurwitz', 'schur'\]"):
        SCRIPT["render"]()


@pytest.mark.parametrize("name", NAMES)
def test_the_example_trains_inside_of_the_set(name):
    variables = {}
    torch.manual_seed(0)
    exec(SCRIPT["Example"](name).code, variables)
    layer = variables["layer"]
    before = layer.weight.detach().clone()
    shape = (8, 16, 8, 8) if before.ndim == 4 else (8, before.shape[1])
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    layer(torch.randn(shape, dtype=before.dtype)).abs().square().mean().backward()
    optimizer.step()
    assert_feasible(layer)
    assert not torch.equal(layer.weight, before)


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("sum to one", "simplex"),
        ("stable dynamics", "schur"),
        ("stable dynamics", "hurwitz"),
        ("covariance", "positive_definite"),
        ("Lipschitz", "spectral_norm"),
        ("unit length", "sphere"),
        ("keep lengths", "orthogonal"),
        ("LoRA", "low_rank"),
        ("transition matri", "row_stochastic"),
        ("cut points", "ordered"),
    ],
)
def test_the_index_is_found_by_what_people_want(pages, words, name):
    rows = [row for row in pages["index.md"].splitlines() if f"[`{name}`]" in row]
    assert any(words in row for row in rows)


@pytest.mark.parametrize("name", NAMES)
def test_formulas_are_latex(name):
    """One notation, without what a table would cut and what a terminal would not show."""
    text = (inspect.getdoc(get(name)) or "").partition("\nExample:")[0]
    assert text.count("$") % 2 == 0
    for formula in re.findall(r"\$([^$]*)\$", text):
        assert "|" not in formula, r"\lvert, \lVert"
        assert formula == formula.strip()
        assert formula.count("{") == formula.count("}")
    prose = re.sub(r"\$[^$]*\$|``[^`]*``|`[^`]*`", "", text)
    assert not re.findall(r"->|[<>]=|\w\^|\|\||\b[A-Z]'|\beps\b|\\", prose)
    parts = SCRIPT["_paragraphs"](get(name))
    assert parts["Set"].startswith("$") and len(parts["Use"].split()) > 5


def test_every_set_has_a_picture_of_its_own():
    files = {path.stem: path.read_bytes() for path in (FOLDER / "pictures").iterdir()}
    assert sorted(files) == NAMES, "run `make catalogue`"
    assert len(set(files.values())) == len(files)
    assert max(map(len, files.values())) < 30_000


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_labels_neither_overlap_nor_leave_the_picture(name, monkeypatch):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    figure, drawn = PICTURES["figure"](name), {}
    draw = Text.draw

    def recorded(text, renderer):
        if text.get_visible() and text.get_text().strip():
            drawn[text] = text.get_window_extent(renderer).padded(-1)
        draw(text, renderer)

    monkeypatch.setattr(Text, "draw", recorded)
    FigureCanvasAgg(figure).draw()
    assert drawn or name == "special_orthogonal", "nothing says what the numbers are"
    for one, other in combinations(drawn, 2):
        assert not drawn[one].overlaps(drawn[other]), (one.get_text(), other.get_text())
    for text, box in drawn.items():
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1, text.get_text()
        assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1, text.get_text()
