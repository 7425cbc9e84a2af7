"""Names of modules, objects and files in docstrings, comments and pages are those of today."""

import re
import tomllib
from importlib import import_module
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]
#: All but the changelog, which tells of names that were changed later, and the pages for users of
#: other libraries, some of which have `constraints` too.
PAGES = [
    *(page for folder in ("constrained", "constraints") for page in (ROOT / folder).rglob("*.py")),
    *(page for page in ROOT.glob("docs/**/*.md") if page.parent.name != "coming_from"),
    *ROOT.glob("tests/**/*.md"),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "RELEASING.md")),
]
CODE = re.compile(r"(`+)(?!`)(.+?)(?<!`)\1(?!`)")
OBJECT = re.compile(r"(?<![\w./-])(?:constrained|constraints|tests)(?:\.\w+)+(?!\w|/)")
#: A path is told from other text with slashes by its end: an extension, or a slash.
FILE = re.compile(
    r"(?<![\w./-])(?:constrained|constraints|docs|tests|benchmarks)/"
    r"(?:[\w./-]*(?:\.(?:py|md|svg|png|ipynb)|/))?(?![\w/])"
)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def resolve(name):
    """The module or object of a dotted name, for which no module of version 0.1 is taken."""
    package, *rest = name.split(".")
    found = import_module(package)
    for part in rest:
        within = getattr(found, "__name__", None)
        found = getattr(found, part) if hasattr(found, part) else import_module(f"{within}.{part}")
        if isinstance(found, ModuleType) and not hasattr(found, "__file__"):
            raise ImportError("it moved")
    return found


def unresolved(text, folder):
    """The names between backticks that cannot be imported, and the paths that do not exist."""
    named = {name for code in CODE.finditer(text) for name in OBJECT.findall(code[2])}
    for name in sorted(named - set(PROJECT["entry-points"])):
        try:
            resolve(name)
        except (ImportError, DeprecationWarning) as error:
            # What needs another library is there, and says so.
            if "is not installed" not in str(error):
                yield f"{name}: {error}"
    for name in FILE.findall(text):
        # ROOM stands for any room.
        if "/ROOM/" not in name and not any((base / name).exists() for base in (ROOT, folder)):
            yield name


def test_they_resolve():
    found = {page: [*unresolved(page.read_text("utf-8"), page.parent)] for page in PAGES}
    assert {str(page): names for page, names in found.items() if names} == {}


def test_those_that_moved_are_found():
    text = "`constraints.gone`, `constraints.polar`, ``constrained.get(name)``, docs/gone.md"
    found = [name.partition(":")[0] for name in unresolved(text, ROOT)]
    assert found == ["constraints.gone", "constraints.polar", "docs/gone.md"]
