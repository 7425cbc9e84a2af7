"""A small experiment, and a module of a user beside it."""

from __future__ import annotations

import copy
import re
import sys
from pathlib import Path

import pytest
import yaml

from constrained.experiments import run

BASE = {
    "name": "small",
    "data": {"name": "iris"},
    "model": {"name": "mlp", "hidden": [6]},
    "optimizer": {"name": "SGD", "lr": 0.1},
    "training": {"epochs": 2, "batch": 35},
    "constraints": {"0.weight": "orthogonal"},
}


class QuotingDumper(yaml.SafeDumper):
    """PyYAML's dumper, which leaves 1e-3 without quotes although it is text."""


QuotingDumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style='"' if re.match(r"[-+.\d]", text) else None
    ),
)


class Bench:
    """Experiments in a folder of their own, which is the working directory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, changes=None, name="small.yaml") -> Path:
        """The small experiment with some dotted keys changed; ``...`` takes one away."""
        given = copy.deepcopy(BASE)
        for key, value in (changes or {}).items():
            *path, last = key.split(".") if key != "constraints" else [key]
            part = given
            for step in path:
                part = part[step]
            if value is ...:
                del part[last]
            else:
                part[last] = value
        path = self.folder / name
        path.write_text(yaml.dump(given, Dumper=QuotingDumper, sort_keys=False), "utf-8")
        return path

    def run(self, changes=None, **keywords):
        return run(self.write(changes), out=self.folder / "runs", **keywords)

    def module(self, text: str, name: str = "users_own") -> str:
        """A module that the working directory has."""
        (self.folder / f"{name}.py").write_text(text, "utf-8")
        return name


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield Bench(tmp_path)
    for name in set(sys.modules) - before:
        if name.startswith("users_own"):
            del sys.modules[name]
