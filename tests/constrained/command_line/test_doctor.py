"""``doctor``: versions, and what is in the way."""

from __future__ import annotations

import json
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import torch

import constrained
from constrained.command_line import doctor


def test_facts(run, monkeypatch):
    monkeypatch.setattr(doctor, "_shadowed", list)
    monkeypatch.setattr(doctor, "_another_version", list)
    result = run("doctor", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["torch"] == torch.__version__
    assert found["constrained"] == constrained.__version__
    assert found["packages"]["constrained"] == str(Path(constrained.__file__).parent)
    assert found["peers"]["safetensors"]
    assert found["constraints"] == len(constrained.names())
    assert found["devices"][0].startswith("cpu (")
    assert found["problems"] == []
    text = run("doctor")
    assert text.exit_code == 0
    assert text.stdout.endswith("\nNothing is in the way.\n")
    assert max(map(len, text.stdout.splitlines())) <= max(80, len(sys.executable) + 30)


def test_an_entry_point_that_cannot_be_loaded(run, monkeypatch):
    point = EntryPoint("broken", "no_such_module", "constrained.constraints")
    monkeypatch.setattr(doctor, "entry_points", lambda group: [point])
    result = run("doctor")
    assert result.exit_code == 1
    assert "PROBLEM The constraints of 'no_such_module' are missing, since loading it raised" in (
        result.stdout
    )
    assert "Nothing is in the way" not in result.stdout


def test_another_module_of_the_name(run, folder, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, str(folder)])
    (folder / "constrained.py").write_text("", "utf-8")
    (folder / "constraints").mkdir()
    (folder / "constraints" / "__init__.py").write_text("", "utf-8")
    problems = json.loads(run("doctor", "--json").stdout)["problems"]
    assert any(str(folder / "constrained.py") in problem for problem in problems)
    assert any(str(folder / "constraints") in problem for problem in problems)


def test_another_version_is_installed(run, monkeypatch):
    monkeypatch.setattr(doctor, "version", lambda name: "0.0.1")
    problems = json.loads(run("doctor", "--json").stdout)["problems"]
    assert any("constrained-layers 0.0.1 is installed" in problem for problem in problems)
