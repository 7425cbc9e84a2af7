"""The packages are as docs/architecture.md shows them: imports run downwards, no file is long."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

DOCS = (
    next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").exists())
    / "docs"
)

architecture = SimpleNamespace(**runpy.run_path(str(DOCS / "architecture.py")))
PACKAGES = list(architecture.ROOMS)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_folder_is_a_room(package):
    folders = {path.parent.name for path in (DOCS.parent / package).glob("*/__init__.py")}
    assert folders == set(architecture.ROOMS[package]) - {""}


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_run_downwards(package):
    order, room_of = architecture.ROOMS[package], architecture.room_of
    upwards = [
        f"{name} imports {other}"
        for name, others in architecture.arrows(package).items()
        for other in others
        if "." in other and order.index(room_of(other)) < order.index(room_of(name))
    ]
    assert not upwards


@pytest.mark.parametrize("package", PACKAGES)
def test_no_files_import_each_other(package):
    assert not architecture.circle(package)


@pytest.mark.parametrize("package", PACKAGES)
def test_no_file_is_long(package):
    lengths = {
        name: len(path.read_text("utf-8").splitlines())
        for name, path in architecture.modules(package).items()
    }
    limit = architecture.LONGEST[package]
    assert {name: length for name, length in lengths.items() if length > limit} == {}


def test_the_picture_is_of_these_files(tmp_path):
    architecture.draw(tmp_path / "now.svg")
    now, then = (path.read_text("utf-8") for path in (tmp_path / "now.svg", architecture.PICTURE))
    # Lines are drawn a little differently by other versions of the library.
    texts = [re.findall(r">([^<>]+)</text>", picture) for picture in (now, then)]
    assert texts[0] == texts[1], "run `make architecture`"
