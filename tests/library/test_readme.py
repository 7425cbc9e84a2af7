"""The README's snippets run and print what it shows, and its statements hold."""

import importlib
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from torch import nn

import constrained
from constrained import testing
from constrained.constraint import registry
from constrained.experiments import read_experiment

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


@pytest.fixture
def registered(monkeypatch):
    """Remove afterwards what a snippet has registered, and nothing else."""
    registry.names()
    monkeypatch.setattr(registry, "_constraints", dict(registry._constraints))
    monkeypatch.setattr(registry, "_aliases", dict(registry._aliases))


def test_the_experiment_is_the_example(tmp_path):
    (experiment,) = blocks("yaml")
    path = tmp_path / "memory.yaml"
    path.write_text(experiment, "utf-8")
    shown, example = map(read_experiment, (path, ROOT / "examples" / "memory.yaml"))
    # The example writes some of the defaults of its data out.
    data = {**example.data.arguments, **shown.data.arguments}
    assert replace(shown, data=example.data) == example
    assert data == example.data.arguments


def test_what_it_says_of_yaml():
    (config,) = blocks("yaml")
    text = " ".join(README.split())
    assert "reads `1e-3` as text, where `1.0e-3` is a number" in text
    assert yaml.safe_load("[1e-3, 1.0e-3]") == ["1e-3", 0.001]
    assert yaml.safe_load("a: 1\na: 2") == {"a": 2}
    model = nn.ModuleDict({"cell": nn.RNNCell(4, 4)})
    constrained.constrain(model, yaml.safe_load(config)["constraints"])
    assert constrained.spec(model) == {"cell.weight_hh": {"name": "orthogonal"}}


def test_what_it_says_of_a_state_dict():
    assert "(`parametrizations.weight.original`)" in README
    layer = constrained.constrain(nn.Linear(4, 4), "weight", "orthogonal")
    assert list(layer.state_dict()) == ["bias", "parametrizations.weight.original"]
    nn.Linear(4, 4).load_state_dict(constrained.baked_state_dict(layer))
    layer.load_state_dict(constrained.baked_state_dict(layer))


@pytest.fixture
def example(registered):
    """The module with the code of "Add a constraint", whose types `make types` checks."""
    yield importlib.import_module("examples.linear_phase")
    del sys.modules["examples.linear_phase"]


def test_a_constraint_of_ones_own_is_that_of_the_example(example):
    (shown,) = (snippet for snippet in blocks("python") if "@register" in snippet)
    assert Path(example.__file__).read_text("utf-8").endswith("\n" + shown)
    assert "constrained.testing.check(LinearPhase)" in README


def test_a_constraint_of_ones_own_obeys_the_laws(example):
    trials = list(testing.trials(example.LinearPhase))
    assert not any(trial.exemption for trial in trials)
    tried = set()
    for trial in trials:
        if trial.law not in tried:
            tried.add(trial.law)
            trial.run()
    assert len(tried) == len(testing.laws()) == len({trial.law for trial in trials})


def test_every_constraint_is_in_the_list(registered):
    missing = [name for name in registry.names() if f"`{name}`" not in README]
    assert not missing
