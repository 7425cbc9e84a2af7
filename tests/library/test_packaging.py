"""The package as it is installed: its version, its dependencies, and the files of its wheel."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import pytest

import constrained

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
PACKAGES = ("constrained", "constraints")


#: A program that no import of the library runs, so it may use what the extra `testing` installs.
PROGRAM = ROOT / "constrained" / "testing" / "__main__.py"


#: Distributions whose package has another name.
IMPORTED_AS = {"pyyaml": "yaml", "scikit-learn": "sklearn"}


def imported(paths: Iterable[Path]) -> set[str]:
    """The packages outside of the standard library that files import, by their first name."""
    found = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
            elif isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
    return found - sys.stdlib_module_names - set(PACKAGES)


def names(requirements: list[str]) -> set[str]:
    found = {re.split(r"[\[<>=! ]", requirement)[0] for requirement in requirements}
    return {IMPORTED_AS.get(name, name).replace("-", "_") for name in found}


def test_what_is_imported_is_what_is_installed_and_no_more():
    library = {path for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    needed = names(PROJECT["dependencies"])
    extras = PROJECT["optional-dependencies"]
    # A picture or an experiment is an error without these, which says how to install them.
    optional = names(extras["plot"]) | names(extras["experiments"])
    assert imported(library - {PROGRAM}) - optional == needed
    assert imported([PROGRAM]) <= needed | names(extras["testing"])


def test_the_version_is_the_newest_of_the_changelog():
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
    assert newest and newest[1] == constrained.__version__
    assert PROJECT["dynamic"] == ["version"]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("setuptools") is None, reason="it is built by setuptools")
def test_the_wheel_holds_both_packages_and_no_tests(tmp_path):
    # From a copy, since files of an earlier build in a checkout would be in the wheel too.
    source = tmp_path / "source"
    source.mkdir()
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, source)
    for package in (*PACKAGES, "tests"):
        shutil.copytree(ROOT / package, source / package)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*command, "--wheel-dir", str(tmp_path), str(source)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith(f"constrained_layers-{constrained.__version__}-")
    held = zipfile.ZipFile(wheel).namelist()
    folders = {name.partition("/")[0] for name in held}
    assert {name for name in folders if not name.endswith(".dist-info")} == set(PACKAGES)
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(held)
    assert "constrained/experiments/experiment.schema.json" in held
    assert not [name for name in held if "promises" in name or "/test_" in name]
