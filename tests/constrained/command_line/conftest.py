"""Run the command in this process, in a folder with a module that makes models."""

from __future__ import annotations

import sys

import pytest
from typer.testing import CliRunner

from constrained.command_line.app import app

MODULE = """
import torch
from torch import nn
import constrained

def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 8), nn.LayerNorm(8), nn.Conv1d(8, 4, 3), nn.Linear(8, 2)
    )

def kept():
    view = {"name": "spectral_norm", "view": "conv"}
    rules = {"0.weight": "orthogonal", "2.weight": view, "3.weight": "positive"}
    return constrained.constrain(net(), rules)

def broken():
    raise RuntimeError("no\\nweights")

def ending():
    raise SystemExit(7)

def nothing():
    return 3

model = net()
number = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "toy_models.py").write_text(MODULE, "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "toy_models", raising=False)
    return tmp_path


@pytest.fixture
def run(folder):
    def run(*arguments: object, columns: int = 80):
        return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": str(columns)})

    return run


@pytest.fixture
def problem(run):
    """The sentence of a command that ends because of its input: one line, and the exit code 2."""

    def problem(*arguments: object) -> str:
        result = run(*arguments)
        assert result.exit_code == 2, result.output
        assert result.stdout == ""
        assert result.stderr.startswith("Error: ")
        assert result.stderr.count("\n") == 1
        return result.stderr.removeprefix("Error: ").rstrip("\n")

    return problem
