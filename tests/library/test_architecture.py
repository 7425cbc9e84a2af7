"""The rooms stand as docs/architecture.md shows: imports run downwards, and no file is long."""

from __future__ import annotations

import pytest

from tests import architecture
from tests.architecture import LONGEST, ROOMS, arrows, circle, modules, room_of

PACKAGES = list(ROOMS)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_file_stands_in_a_room(package):
    folders = {
        p.name for p in (architecture.ROOT / package).iterdir() if (p / "__init__.py").exists()
    }
    assert folders == set(ROOMS[package]) - {""}


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_run_downwards(package):
    order = ROOMS[package]
    upwards = [
        f"{name} imports {other}"
        for name, others in arrows(package).items()
        for other in others
        if "." in other and order.index(room_of(other)) < order.index(room_of(name))
    ]
    assert not upwards


@pytest.mark.parametrize("package", PACKAGES)
def test_no_files_import_each_other(package):
    assert not circle(package)


@pytest.mark.parametrize("package", PACKAGES)
def test_no_file_is_long(package):
    lines = {
        name: len(path.read_text("utf-8").splitlines()) for name, path in modules(package).items()
    }
    assert {name: n for name, n in lines.items() if n > LONGEST[package]} == {}
