"""Runs the code of the pages as a reader would, and writes in what it prints: `make pages`.

The blocks of a page are one program. What a block is, its language and title say:

- ``python`` runs; if it prints, the block after it is ``text`` and shows what;
- any block with ``title="a/file.yaml"`` is that file in the folder where the others run;
- ``console`` has commands, each after ``$ ``, that run there, and what they print;
- ``pycon`` is the example of a docstring, which the doctests run;
- ``shell`` installs something, or is for another machine, and does not run.

A page says in its front matter which libraries it ``needs`` that a development environment lacks.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

DOCS = Path(__file__).parent
ROOT = DOCS.parent

#: The languages of the blocks that a page may have.
LANGUAGES = ("python", "pycon", "text", "console", "shell", "yaml", "json", "toml")

#: How wide the tables are that a page shows.
_WIDTH = 110

_FENCE = re.compile(
    r'^```(?P<language>\w*)(?: title="(?P<title>[^"]+)")?[^\n]*\n(?P<code>.*?)^```$', re.M | re.S
)
_HEAD = re.compile(r"\A---\n(.*?)^---\n", re.M | re.S)
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[-+]?\d+)?(?![\w.]*\w)")


@dataclass(frozen=True)
class Block:
    """A block of code of a page: its language, its title if it is a file, and where it is."""

    language: str
    title: str | None
    code: str
    start: int
    line: int


@dataclass(frozen=True)
class Page:
    """A page: its path, its text and its front matter."""

    path: Path
    text: str

    @property
    def name(self) -> str:
        """The path as tests and messages show it."""
        return self.path.relative_to(ROOT).as_posix()

    @property
    def head(self) -> dict[str, Any]:
        """What is between the lines of three dashes at the top."""
        found = _HEAD.match(self.text)
        return yaml.safe_load(found[1]) if found else {}

    @property
    def needs(self) -> list[str]:
        """The libraries that the page is about, by their import names."""
        return self.head.get("needs", [])

    @property
    def slow(self) -> bool:
        """Whether it starts processes, each of which imports torch."""
        return any(block.language == "console" for block in self.blocks())

    def blocks(self) -> list[Block]:
        """The blocks, in order."""
        return [
            Block(
                match["language"],
                match["title"],
                match["code"],
                match.start("code"),
                self.text.count("\n", 0, match.start("code")),
            )
            for match in _FENCE.finditer(self.text)
        ]


def pages() -> list[Page]:
    """The README and the pages of the site that have code which runs."""
    paths = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
    found = [Page(path, path.read_text("utf-8")) for path in paths]
    runs = {"python", "console"}
    return [page for page in found if any(block.language in runs for block in page.blocks())]


def run(page: Page, folder: Path) -> list[tuple[Block, str]]:
    """Run a page in a folder: each block that shows what was printed, with what it should show.

    Raises:
        AssertionError: for a block that prints what the page does not show, or the reverse.
    """
    with _inside(folder):
        return list(_outputs(page, folder))


def _outputs(page: Page, folder: Path) -> Iterator[tuple[Block, str]]:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    printed: str | None = None
    for block in page.blocks():
        where = f"{page.name}:{block.line + 1}"
        assert block.language in LANGUAGES or not block.language, f"{where}: {block.language}?"
        if printed is not None:
            shown = block.language == "text" and not block.title
            assert shown or not printed, f"{where}: the page does not show {printed!r}"
        if block.title:
            target = folder / block.title
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(block.code, "utf-8")
            printed = None
        elif block.language == "python":
            code = compile("\n" * block.line + block.code, page.name, "exec")
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(code, namespace)
            printed = _plain(out.getvalue())
        elif block.language == "console":
            yield block, "".join(_commands(block, folder, where))
            printed = None
        elif block.language == "text" and printed is not None:
            yield block, printed
            printed = None
    assert not printed, f"{page.name}: the page does not show {printed!r}"


def same(shown: str, printed: str) -> bool:
    """Whether two outputs agree but for rounding, and the widths of tables that it changes."""
    if _words(shown) != _words(printed):
        return False
    pairs = zip(_NUMBER.findall(shown), _NUMBER.findall(printed), strict=True)
    return all(_close(float(one), float(other)) for one, other in pairs)


def _close(one: float, other: float) -> bool:
    # Less than 1e-5 is rounding, of which only the size can be compared.
    return abs(one - other) <= max(1e-5, 0.02 * max(abs(one), abs(other)))


def _words(text: str) -> list[str]:
    return re.sub(r"[ ━─═┏┳┓┡╇┩└┴┘│┃|+-]+", " ", _NUMBER.sub("0", text)).split()


def _plain(text: str) -> str:
    return "".join(line.rstrip() + "\n" for line in text.splitlines())


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """In a folder, whose modules can be imported until the end and are forgotten then."""
    before, known = Path.cwd(), set(sys.modules)
    columns = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(_WIDTH)
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        os.chdir(before)
        del os.environ["COLUMNS"]
        if columns is not None:
            os.environ["COLUMNS"] = columns
        sys.path.remove(str(folder))
        for name in set(sys.modules) - known:
            if str(folder) in (getattr(sys.modules[name], "__file__", None) or ""):
                del sys.modules[name]


def _commands(block: Block, folder: Path, where: str) -> Iterator[str]:
    bin_ = Path(sys.executable).parent
    places = [os.environ.get("PYTHONPATH", ""), str(ROOT), str(folder)]
    environment = {
        **os.environ,
        "PATH": f"{bin_}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(filter(None, places)),
        "OMP_NUM_THREADS": "1",
    }
    for command in re.findall(r"^\$ (.*(?:\\\n.*)*)", block.code, re.M):
        done = subprocess.run(
            command, shell=True, cwd=folder, env=environment, capture_output=True, text=True
        )
        failed = done.returncode and not done.stdout
        assert not failed, f"{where}: {command}\n{done.stderr}"
        yield f"$ {command}\n{_plain(done.stdout)}"


def main() -> None:
    """Write what the code prints into the pages."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("pages", nargs="*", type=Path, help="by default all")
    # This checkout, and not the scripts beside this one.
    sys.path[0] = str(ROOT)
    # As the tests run them: sums of several threads round otherwise.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    chosen = {path.resolve() for path in parser.parse_args().pages}
    for page in pages():
        if chosen and page.path.resolve() not in chosen:
            continue
        missing = [name for name in page.needs if importlib.util.find_spec(name) is None]
        if missing:
            print(f"{page.name}: left as it is, without {', '.join(missing)}")
            continue
        folder = Path(tempfile.mkdtemp())
        text = page.text
        # From the end, so that the places of the others stay.
        for block, output in reversed(run(page, folder)):
            end = block.start + len(block.code)
            if not same(block.code, output):
                text = text[: block.start] + output + text[end:]
        shutil.rmtree(folder)
        if text != page.text:
            page.path.write_text(text, "utf-8")
            print(f"{page.name}: written")


if __name__ == "__main__":
    main()
