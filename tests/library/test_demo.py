"""The experiments in `examples/`, as `make demo` and the README run them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from constrained.experiments import read_experiment, run
from constrained.experiments.runner import prepare

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").exists())
FILES = {path.stem: path for path in (ROOT / "examples").glob("*.yaml")}

#: What makes an example short.
SHORTER = {
    "memory": {"noise_steps: 100 ": "noise_steps: 10 "},
    "pixels": {},
    "copying": {"wait: 100 ": "wait: 5 "},
    "iris": {},
}


def edited(folder: Path, name: str, changes: dict[str, str]) -> Path:
    """An example with some of its text replaced."""
    text = FILES[name].read_text("utf-8")
    for old, new in changes.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    path = folder / f"{name}.yaml"
    path.write_text(text, "utf-8")
    return path


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory):
    """All examples for one epoch, the sequences of some of them shorter."""
    folder = tmp_path_factory.mktemp("runs")
    return {
        name: run(edited(folder, name, changes), epochs=1, out=folder)
        for name, changes in SHORTER.items()
    }


def test_every_example_is_tried():
    assert set(SHORTER) == set(FILES)


def test_the_name_of_an_example_is_that_of_its_file():
    assert {name: read_experiment(path).name for name, path in FILES.items()} == {
        name: name for name in FILES
    }


def test_make_runs_what_the_readme_shows():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    demo = next(line for line in makefile.splitlines() if line.endswith("examples/pixels.yaml"))
    assert "examples/memory.yaml" in demo
    readme = (ROOT / "README.md").read_text("utf-8")
    assert all(f"runs/{name}: experiment.yaml" in readme for name in ("memory", "pixels"))


@pytest.mark.parametrize("name", list(SHORTER))
class TestExamples:
    def test_only_the_constrained_network_stays_in_the_set(self, outcomes, name):
        constrained, free = outcomes[name].metrics["networks"].values()
        assert constrained["largest_violation"] <= 1e-5
        if name != "iris":
            # That starts inside of its set, which one epoch need not leave.
            assert free["largest_violation"] > 1e-3

    def test_both_networks_start_alike(self, outcomes, name):
        constrained, free = outcomes[name].metrics["networks"].values()
        assert constrained["history"]["test"]["loss"][0] == pytest.approx(
            free["history"]["test"]["loss"][0], abs=1e-5
        )

    def test_every_step_is_measured(self, outcomes, name):
        metrics = json.loads((outcomes[name].folder / "metrics.json").read_text("utf-8"))
        training = metrics["experiment"]["training"]
        examples = len(prepare(FILES[name]).task.train[0])
        steps = math.ceil(examples / training["batch"])
        for network in metrics["networks"].values():
            assert len(network["history"]["violation"]) == steps + 1
            assert len(network["history"]["test"]["accuracy"]) == 2
            assert 0 <= network["test_accuracy"] <= 1

    def test_the_picture_is_one(self, outcomes, name):
        picture = outcomes[name].folder / "picture.png"
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert picture.stat().st_size > 10_000


@pytest.mark.parametrize("spec", ["orthogonal", "low_rank(rank=3)"])
def test_the_twin_starts_where_the_constrained_network_does(tmp_path, spec):
    path = edited(tmp_path, "memory", {"cell.weight_hh: orthogonal": f"cell.weight_hh: {spec}"})
    ours, twin = (trainer.model for trainer in prepare(path).trainers.values())
    values = torch.randn(4, 9, 8)
    torch.testing.assert_close(ours(values), twin(values), rtol=0, atol=1e-5)
    assert "cell.weight_hh" in dict(twin.named_parameters())


def test_the_twin_is_measured_through_the_same_view(tmp_path):
    spec = "{name: spectral_norm, bound: 0.9, view: 'o i -> i o'}"
    path = edited(tmp_path, "pixels", {"cell.weight_hh: orthogonal": f"cell.weight_hh: {spec}"})
    ours, twin = prepare(path).trainers.values()
    assert ours.judge.violation(ours.model) <= 1e-5
    assert ours.judge.violation(twin.model) <= 1e-5
    with torch.no_grad():
        nn.init.orthogonal_(twin.model.cell.weight_hh)
    assert ours.judge.violation(twin.model) == pytest.approx(0.1, abs=1e-4)
