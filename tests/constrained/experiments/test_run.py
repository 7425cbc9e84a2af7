"""A run from the file to the folder: what is written, and that it is the same again."""

from __future__ import annotations

import json
import math
import random

import numpy
import pytest
import torch
from typer.testing import CliRunner

import constrained
from constrained import ConfigErrors
from constrained.command_line.app import app
from constrained.experiments import ExperimentError, run, runner
from constrained.experiments.runner import prepare
from constrained.experiments.training import Trainer

ALL = {
    *("experiment.yaml", "plan.txt", "report.txt", "metrics.json", "metrics.csv", "picture.png"),
    "constrained.safetensors",
}


def command(*arguments: object):
    return CliRunner().invoke(app, ["run", *map(str, arguments)], env={"COLUMNS": "100"})


class TestFolder:
    def test_what_is_written(self, bench):
        outcome = bench.run()
        assert outcome.folder == bench.folder / "runs" / "small"
        assert {path.name for path in outcome.folder.iterdir()} == ALL
        assert "orthogonal()" in (outcome.folder / "plan.txt").read_text("utf-8")
        assert "orthogonal()" in (outcome.folder / "report.txt").read_text("utf-8")
        assert (outcome.folder / "picture.png").read_bytes().startswith(b"\x89PNG")

    def test_metrics(self, bench):
        outcome = bench.run({"compare": True})
        metrics = json.loads((outcome.folder / "metrics.json").read_text("utf-8"))
        assert metrics == outcome.metrics
        assert metrics["versions"]["torch"] == torch.__version__
        assert not metrics["interrupted"]
        assert list(metrics["networks"]) == ["constrained", "unconstrained"]
        for network in metrics["networks"].values():
            history = network["history"]
            assert len(history["violation"]) == 2 * 3 + 1
            assert [len(history[key]) for key in ("loss", "seconds")] == [2, 2]
            assert len(history["test"]["accuracy"]) == 3
            assert network["test_accuracy"] == history["test"]["accuracy"][-1]
            assert network["largest_violation"] == max(history["violation"])
        ours, twin = metrics["networks"].values()
        assert ours["largest_violation"] <= 1e-5 < 1e-3 < twin["largest_violation"]
        first, *_ = (network["history"]["test"]["loss"][0] for network in (ours, twin))
        assert twin["history"]["test"]["loss"][0] == pytest.approx(first, abs=1e-5)
        table = (outcome.folder / "metrics.csv").read_text("utf-8").splitlines()
        assert table[0] == "network,epoch,train loss,test loss,test accuracy,seconds"
        assert [line.split(",")[:2] for line in table[1:]] == [
            [label, str(epoch)] for label in metrics["networks"] for epoch in range(3)
        ]

    def test_weights_load_into_a_new_model(self, bench):
        outcome = bench.run()
        new = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
        constrained.load(outcome.folder / "constrained.safetensors", new)
        trained = outcome.models["constrained"]
        assert constrained.spec(new) == {"0.weight": {"name": "orthogonal"}}
        for (path, here), (_, there) in zip(
            constrained.baked_state_dict(new).items(),
            constrained.baked_state_dict(trained).items(),
            strict=True,
        ):
            assert torch.equal(here, there), path

    def test_monitor(self, bench):
        outcome = bench.run({"monitor": 2})
        lines = (outcome.folder / "monitor.csv").read_text("utf-8").splitlines()
        assert [line.split(",")[0] for line in lines] == ["step", "2", "4", "6"]
        assert "drift" in (outcome.folder / "report.txt").read_text("utf-8")

    def test_no_weights(self, bench):
        assert not list(bench.run({"save": False}).folder.glob("*.safetensors"))

    def test_what_an_earlier_run_left_is_replaced(self, bench):
        bench.run({"compare": True, "monitor": 1})
        outcome = bench.run()
        assert {path.name for path in outcome.folder.iterdir()} == ALL
        foreign = outcome.folder / "notes.txt"
        foreign.write_text("mine")
        bench.run()
        assert foreign.read_text() == "mine"

    def test_a_matrix_is_drawn_or_the_loss(self, bench):
        vectors = bench.run({"constraints": {"0.bias": "nonnegative"}, "name": "vectors"})
        history = vectors.metrics["networks"]["constrained"]["history"]
        assert history["singular_values"] == {"before": [], "after": []}
        matrix = bench.run().metrics["networks"]["constrained"]["history"]["singular_values"]
        assert matrix["after"] == pytest.approx([1.0] * 4, abs=1e-5)

    def test_a_view_is_judged_through_the_view(self, bench):
        spec = {"name": "spectral_norm", "bound": 0.5, "view": "o i -> i o"}
        outcome = bench.run({"constraints": {"0.weight": spec}, "compare": True})
        ours, twin = outcome.metrics["networks"].values()
        assert ours["largest_violation"] <= 1e-5
        expected = torch.linalg.matrix_norm(outcome.models["unconstrained"][0].weight, 2) - 0.5
        assert twin["history"]["violation"][-1] == pytest.approx(expected.item(), abs=1e-5)


class TestTheSameNumbers:
    @staticmethod
    def numbers(outcome, label="constrained"):
        history = outcome.metrics["networks"][label]["history"]
        return {key: history[key] for key in ("test", "loss", "violation", "singular_values")}

    def test_twice(self, bench):
        first = bench.run({"compare": True})
        torch.rand(3)
        second = bench.run({"compare": True})
        for label in ("constrained", "unconstrained"):
            assert self.numbers(first, label) == self.numbers(second, label)

    def test_another_seed_gives_others(self, bench):
        assert self.numbers(bench.run()) != self.numbers(bench.run(seed=1))

    @pytest.mark.parametrize("changes", [{"compare": True}, {"monitor": 1}])
    def test_what_is_beside_the_network_changes_nothing(self, bench, changes):
        bench.module(
            "from torch import nn\n"
            "def net():\n"
            "    return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3))\n"
        )
        model = {"model": "users_own:net"}
        assert self.numbers(bench.run(model)) == self.numbers(bench.run({**model, **changes}))

    def test_the_written_file_gives_the_same(self, bench):
        first = bench.run(epochs=3, seed=5)
        again = run(first.folder / "experiment.yaml", out=bench.folder / "again")
        assert self.numbers(first) == self.numbers(again)

    def test_random_numbers_and_threads_of_the_program_stay(self, bench):
        torch.manual_seed(3), random.seed(3), numpy.random.seed(3)
        expected = torch.rand(1).item(), random.random(), numpy.random.rand()
        torch.manual_seed(3), random.seed(3), numpy.random.seed(3)
        before = torch.get_num_threads()
        bench.run(threads=2)
        assert torch.get_num_threads() == before
        assert (torch.rand(1).item(), random.random(), numpy.random.rand()) == expected

    def test_rates_of_single_tensors_reach_the_free_parameters(self, bench):
        groups = {"0.weight": {"lr": 1e-3}}
        prepared = prepare(bench.write({"optimizer.param_groups": groups}))
        trainer = prepared.trainers["constrained"]
        slow, usual = sorted(trainer.optimizer.param_groups, key=lambda group: group["lr"])
        (free,) = trainer.model[0].parametrizations["weight"].parameters()
        assert (slow["lr"], usual["lr"]) == (1e-3, 0.1)
        assert [id(p) for p in slow["params"]] == [id(free)]
        assert len(usual["params"]) == len(list(trainer.model.parameters())) - 1

    def test_lbfgs(self, bench):
        changes = {"optimizer": {"name": "LBFGS", "lr": 0.5}, "monitor": 1, "training.batch": 105}
        network = bench.run(changes, epochs=4).metrics["networks"]["constrained"]
        losses = network["history"]["loss"]
        assert losses[-1] < 0.7 * losses[0]
        assert network["largest_violation"] <= 1e-5


class TestEnds:
    def test_a_loss_that_is_not_finite(self, bench):
        path = bench.write({"optimizer.lr": 1e30, "compare": True})
        result = command("--out", "runs", "--epochs", 3, path)
        assert result.exit_code == 1
        assert "Training of the unconstrained network ended in epoch 1, at step " in result.stdout
        metrics = json.loads((bench.folder / "runs" / "small" / "metrics.json").read_text("utf-8"))
        assert metrics["networks"]["unconstrained"]["history"]["stopped"]
        assert (bench.folder / "runs" / "small" / "picture.png").exists()

    def test_a_gradient_that_is_not_finite_is_not_stepped_along(self, bench):
        bench.module(
            "import torch\n"
            "from torch import nn\n"
            "class Net(nn.Sequential):\n"
            "    def forward(self, x):\n"
            "        y = super().forward(x)\n"
            "        return y + (0 * y).abs().sqrt()\n"
            "def net():\n"
            "    return Net(nn.Linear(4, 6), nn.Linear(6, 3))\n"
        )
        outcome = bench.run({"model": "users_own:net", "training.clip": 1.0})
        assert outcome.stopped == {
            "constrained": "in epoch 1, at step 1: the norm of the gradient is nan."
        }
        for parameter in outcome.models["constrained"].parameters():
            assert bool(torch.isfinite(parameter).all())
        assert math.isfinite(outcome.metrics["networks"]["constrained"]["test_loss"])

    def test_ctrl_c_leaves_what_was_measured(self, bench, monkeypatch):
        epoch = Trainer.epoch

        def interrupted(self):
            if len(self.history.loss) == 1:
                raise KeyboardInterrupt
            epoch(self)

        monkeypatch.setattr(Trainer, "epoch", interrupted)
        result = command("--out", "runs", bench.write())
        assert result.exit_code == 130
        folder = bench.folder / "runs" / "small"
        assert result.stderr.startswith(
            "Interrupted: while training small; what was measured is in"
        )
        assert {path.name for path in folder.iterdir()} == ALL
        metrics = json.loads((folder / "metrics.json").read_text("utf-8"))
        assert metrics["interrupted"]
        assert len(metrics["networks"]["constrained"]["history"]["loss"]) == 1

    def test_an_error_of_the_users_model_is_raised_as_it_is(self, bench):
        bench.module(
            "from torch import nn\n"
            "class Net(nn.Sequential):\n"
            "    calls = 0\n"
            "    def forward(self, x):\n"
            "        Net.calls += 1\n"
            "        if Net.calls > 4:\n"
            "            raise ZeroDivisionError('mine')\n"
            "        return super().forward(x)\n"
            "def net():\n"
            "    return Net(nn.Linear(4, 6), nn.Linear(6, 3))\n"
        )
        with pytest.raises(ZeroDivisionError, match="mine"):
            bench.run({"model": "users_own:net"})
        metrics = json.loads((bench.folder / "runs" / "small" / "metrics.json").read_text("utf-8"))
        assert metrics["interrupted"]

    def test_json(self, bench):
        result = command("--json", "--out", "runs", bench.write())
        assert result.exit_code == 0
        written = json.loads((bench.folder / "runs" / "small" / "metrics.json").read_text("utf-8"))
        assert json.loads(result.stdout) == {"small": written}

    def test_wrong_input_is_one_line_for_each_error(self, bench):
        path = bench.write({"training.epochs": 0, "compare": 3})
        result = command("--out", "runs", path)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.splitlines() == [
            f"Error: {path}: training.epochs must be at least 1, got 0.",
            f"Error: {path}: compare must be true or false, got 3.",
        ]
        assert not (bench.folder / "runs").exists()

    def test_an_error_in_training_is_one_line(self, bench):
        path = bench.write({"optimizer": {"name": "SparseAdam", "lr": 0.1}})
        result = command("--out", "runs", path)
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
        assert result.stderr.startswith("Error: while training small; what was measured is in runs")
        assert "RuntimeError: SparseAdam does not support dense gradients" in result.stderr
        assert (bench.folder / "runs" / "small" / "metrics.json").exists()

    def test_every_file_is_read_before_the_first_is_trained(self, bench):
        good, bad = bench.write(), bench.write({"model": "none"}, "bad.yaml")
        result = command("--out", "runs", bad, good, "absent.yaml")
        assert result.exit_code == 2
        first, second = result.stderr.splitlines()
        assert first.startswith(f"Error: {bad}: model.name is 'none'")
        assert second == "Error: absent.yaml: No such file or directory."
        assert not (bench.folder / "runs").exists()

    def test_one_name_for_two_experiments(self, bench):
        result = command(bench.write(), bench.write(name="copy.yaml"))
        assert result.exit_code == 2
        assert result.stderr == (
            "Error: Several experiments have the name 'small'; rename all but one.\n"
        )

    def test_a_folder_that_cannot_be_made(self, bench):
        (bench.folder / "file").touch()
        with pytest.raises(ExperimentError) as error:
            run(bench.write(), out=bench.folder / "file")
        assert str(error.value) == f"{bench.folder / 'file' / 'small'}: Not a directory."

    def test_what_is_missing_is_said_before_training(self, bench, monkeypatch):
        monkeypatch.setattr(
            runner, "find_spec", lambda name: None if name == "matplotlib" else name
        )
        with pytest.raises(ExperimentError) as error:
            bench.run()
        assert str(error.value) == (
            "An experiment needs matplotlib: pip install 'constrained-layers[experiments]'."
        )

    def test_a_second_run_says_that_it_overwrites_the_first(self, bench):
        path = bench.write({"training.epochs": 1})
        first, second = command(path), command(path)
        assert "overwritten" not in first.stdout
        assert "small holds an earlier run, which is overwritten." in second.stdout


def test_all_names_that_do_not_exist_are_told_at_once(bench):
    path = bench.write({"data.name": "no_such:data", "model.name": "mlpp", "optimizer.name": "Sdg"})
    with pytest.raises(ConfigErrors) as caught:
        run(path)
    told = [str(error) for error in caught.value.exceptions]
    places = [sentence.partition(": ")[2].partition(".name")[0] for sentence in told]
    assert places == ["data", "model", "optimizer"]
    assert "'no_such' cannot be imported" in told[0]
    assert "Did you mean 'mlp'" in told[1]
