"""The demo: the configs it accepts, the files and figures it writes, and its errors."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from examples.digits import data, networks, optimizer
from examples.digits.__main__ import app
from examples.digits.experiment import Data, Experiment, read

FILES = {path.stem: path for path in Path(data.__file__).parent.glob("*.yaml")}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def demo(*arguments: object):
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "100"})


def edited(folder: Path, old: str, new: str, name: str = "memory") -> Path:
    """The experiment's config with one line replaced."""
    text = FILES[name].read_text("utf-8")
    assert text.count(old) == 1
    path = folder / "edited.yaml"
    path.write_text(text.replace(old, new), "utf-8")
    return path


def problem(folder: Path, old: str, new: str) -> str:
    """The sentence that a run of the edited experiment ends with."""
    path = edited(folder, old, new)
    result = demo("--epochs", 1, "--out", folder, path)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith(f"Error: {path}: ")
    assert result.stderr.count("\n") == 1
    assert [p.name for p in folder.iterdir()] == [path.name], "nothing else was written"
    return result.stderr.removeprefix(f"Error: {path}: ").rstrip("\n")


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory):
    """Both experiments for one epoch, the first with a short noise."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("runs")
    short = edited(out, "noise_steps: 100 ", "noise_steps: 10 ")
    return demo("--epochs", 1, "--out", out, short, FILES["pixels"]), out


@pytest.mark.parametrize("name", ["memory", "pixels"])
class TestOutcome:
    def test_prints_a_table(self, outcome, name):
        result, _ = outcome
        assert result.exit_code == 0, result.output
        assert f"{name} (cell.weight_hh: orthogonal)" in result.stdout
        for heading in ("test accuracy", "largest violation", "s per epoch", "ratio"):
            assert result.stdout.count(heading) >= 2
        assert "1/1 epochs" in result.stdout

    def test_writes_a_picture(self, outcome, name):
        picture = outcome[1] / name / "picture.png"
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert picture.stat().st_size > 10_000

    def test_measures_every_step(self, outcome, name):
        metrics = json.loads((outcome[1] / name / "metrics.json").read_text("utf-8"))
        given = metrics["experiment"]
        assert (given["name"], given["training"]["epochs"]) == (name, 1)
        steps = math.ceil(1437 / given["training"]["batch"])
        for network in metrics["networks"].values():
            history = network["history"]
            assert len(history["violation"]) == steps + 1
            assert network["largest_violation"] == max(history["violation"])
            assert len(history["accuracy"]) == 2
            assert 0 <= network["test_accuracy"] <= 1
            assert len(history["singular_values"]["after"]) == given["model"]["hidden"]

    def test_the_constrained_network_alone_stays_in_the_set(self, outcome, name):
        metrics = json.loads((outcome[1] / name / "metrics.json").read_text("utf-8"))
        constrained, free = (metrics["networks"][n] for n in ("constrained", "unconstrained"))
        assert constrained["largest_violation"] <= 1e-5
        assert free["largest_violation"] > 1e-3
        assert constrained["history"]["accuracy"][0] == free["history"]["accuracy"][0]


class TestComparison:
    @pytest.fixture
    def experiment(self) -> Experiment:
        return read(FILES["memory"])

    @pytest.mark.parametrize("spec", ["orthogonal", "low_rank(rank=3)"])
    def test_both_networks_start_alike(self, experiment, spec):
        experiment.constraints["cell.weight_hh"] = spec
        models = networks.build(experiment, inputs=8)
        values = torch.randn(4, 9, 8)
        torch.testing.assert_close(
            models["constrained"](values), models["unconstrained"](values), rtol=0, atol=1e-5
        )
        plain = {name for name, _ in models["unconstrained"].named_parameters()}
        assert "cell.weight_hh" in plain

    def test_the_seed_can_be_given(self, tmp_path):
        arguments = ("--epochs", 1, "--seed", 7, "--out", tmp_path, FILES["pixels"])
        assert demo(*arguments).exit_code == 0
        metrics = json.loads((tmp_path / "pixels" / "metrics.json").read_text("utf-8"))
        assert metrics["experiment"]["training"]["seed"] == 7

    def test_both_networks_see_the_same_batches(self, experiment):
        digits = data.load(experiment.data, seed=0)
        first, second = (
            [b for b, _ in digits.batches(500, torch.Generator().manual_seed(0))] for _ in "ab"
        )
        assert all(map(torch.equal, first, second))
        assert first[0].shape == (500, 108, 8)

    def test_learning_rates_reach_the_free_parameters(self):
        experiment = read(FILES["pixels"])
        model = networks.build(experiment, inputs=1)["constrained"]
        groups = optimizer.build(model, experiment.training).param_groups
        slow, usual = sorted(groups, key=lambda group: group["lr"])
        (kernel,) = model.cell.parametrizations["weight_hh"].parameters()
        assert (slow["lr"], usual["lr"]) == (1e-3, 1e-2)
        assert [id(p) for p in slow["params"]] == [id(kernel)]
        assert len(usual["params"]) == len(list(model.parameters())) - 1

    def test_pixels_come_one_by_one(self):
        config = Data(order="pixels", noise_steps=0, noise_scale=0.0, test_fraction=0.2)
        pixels = data.load(config, seed=0)
        rows = data.load(Data("rows", 0, 0.0, 0.2), seed=0)
        assert pixels.train.shape == (1437, 64, 1)
        assert torch.equal(pixels.train.flatten(1), rows.train.flatten(1))
        assert rows.train.std().item() == pytest.approx(1, abs=1e-3)
        assert not set(map(bytes, rows.train.numpy())) & set(map(bytes, rows.test.numpy()))


class TestErrors:
    TARGET = "cell.weight_hh: orthogonal"

    def test_unknown_constraint(self, tmp_path):
        sentence = problem(tmp_path, self.TARGET, "cell.weight_hh: ortogonal")
        assert sentence.startswith("constraints: 'cell.weight_hh': Unknown constraint 'ortogonal'.")
        assert "Did you mean 'orthogonal'?" in sentence

    def test_unknown_argument(self, tmp_path):
        sentence = problem(tmp_path, self.TARGET, "cell.weight_hh: orthogonal(rank=3)")
        assert "orthogonal has no argument 'rank'." in sentence

    def test_code_is_not_run(self, tmp_path):
        sentence = problem(tmp_path, self.TARGET, "cell.weight_hh: orthogonal(map=print(1))")
        assert "arguments must be literals" in sentence

    def test_target_that_matches_nothing(self, tmp_path):
        sentence = problem(tmp_path, self.TARGET, "cel.weight_hh: orthogonal")
        assert "No tensor of Recurrent matches 'cel.weight_hh'." in sentence
        assert "Did you mean 'cell.weight_hh'?" in sentence

    def test_shape_that_cannot_carry_the_constraint(self, tmp_path):
        sentence = problem(tmp_path, self.TARGET, "classify.bias: orthogonal")
        assert sentence.startswith("constraints: 'classify.bias': ")

    def test_learning_rate_of_no_tensor(self, tmp_path):
        sentence = problem(tmp_path, "learning_rates: {}", "learning_rates: {cell.weight: 1.0}")
        assert sentence.startswith("training.learning_rates: No tensor of Recurrent matches")

    @pytest.mark.parametrize(
        ("old", "new", "sentence"),
        [
            (
                "epochs: 50",
                "epocs: 50",
                "training has an unknown key 'epocs': did you mean 'epochs'?",
            ),
            (
                "name: memory",
                "title: memory",
                "the file has an unknown key 'title': known are name, "
                "data, model, training, constraints.",
            ),
            ("  clip: 1.0 ", "# ", "training lacks the key 'clip'."),
            ("epochs: 50", "epochs: many", "training.epochs must be a whole number, got 'many'."),
            ("epochs: 50", "epochs: 0", "training.epochs must be at least 1, got 0."),
            ("hidden: 128", "hidden:", "model.hidden must be a whole number, got None."),
            (
                "order: rows ",
                "order: lines # ",
                "data.order must be one of rows, pixels, got 'lines'.",
            ),
            (
                "name: memory",
                "name: ../up",
                "name must consist of letters, digits, '-' and '_', got '../up'.",
            ),
            ("clip: 1.0 ", "clip: 0 ", "training.clip must be greater than 0, got 0."),
            (
                "test_fraction: 0.2",
                "test_fraction: 1",
                "data.test_fraction must be at most 0.95, got 1.",
            ),
            (
                "1.0e-3",
                "1e-3",
                "training.learning_rate must be a number, got the text '1e-3' (YAML "
                "reads 0.001 as a number).",
            ),
            (
                "1.0e-3",
                ".nan",
                "an experiment holds only mappings, lists, text, true, false and finite numbers.",
            ),
            (TARGET, "7: orthogonal", "constraints has the key 7, which must be text."),
            ("  " + TARGET, "  {}", "constraints must name at least one tensor, got {}."),
        ],
    )
    def test_schema(self, tmp_path, old, new, sentence):
        assert problem(tmp_path, old, new) == sentence

    def test_no_yaml(self, tmp_path):
        sentence = problem(tmp_path, "hidden: 128", "hidden: [128")
        assert "this is no YAML" in sentence
        assert sentence.startswith("line ")

    def test_a_key_twice(self, tmp_path):
        target = self.TARGET.partition(":")[0]
        sentence = problem(tmp_path, "  " + target, f"  {target}: sphere\n  {target}")
        assert sentence.startswith("line ")
        assert sentence.endswith(f": the key {target!r} stands twice in one mapping.")
        assert "no YAML" not in sentence

    def test_yaml_runs_nothing(self, tmp_path):
        sentence = problem(tmp_path, "name: memory", 'name: !!python/object/apply:print ["hi"]')
        assert "could not determine a constructor" in sentence

    def test_missing_file(self, tmp_path):
        result = demo(tmp_path / "none.yaml")
        assert result.exit_code == 2
        assert result.stderr == f"Error: {tmp_path / 'none.yaml'}: No such file or directory.\n"

    def test_one_name_for_two_experiments(self, tmp_path):
        copy = shutil.copy(FILES["pixels"], tmp_path / "copy.yaml")
        result = demo("--out", tmp_path / "runs", FILES["pixels"], copy)
        assert result.exit_code == 2
        assert result.stderr == (
            "Error: Two experiments have the name 'pixels'; give them two names.\n"
        )

    def test_folder_that_cannot_be_made(self, tmp_path):
        (tmp_path / "file").touch()
        result = demo("--out", tmp_path / "file", FILES["pixels"])
        assert result.exit_code == 2
        assert result.stderr == f"Error: {tmp_path / 'file' / 'pixels'}: Not a directory.\n"


def test_a_spec_with_arguments_and_a_view(tmp_path):
    """The unconstrained twin is measured through the same view of the same tensor."""
    spec = "{name: spectral_norm, bound: 0.9, view: 'o i -> i o'}"
    path = edited(tmp_path, "cell.weight_hh: orthogonal", f"cell.weight_hh: {spec}", "pixels")
    models = networks.build(read(path), inputs=1)
    measure = networks.measures(models)
    twin = models["unconstrained"]
    assert measure["constrained"](models["constrained"]) <= 1e-5
    assert measure["unconstrained"](twin) <= 1e-5
    with torch.no_grad():
        nn.init.orthogonal_(twin.cell.weight_hh)
    assert measure["unconstrained"](twin) == pytest.approx(0.1, abs=1e-4)
