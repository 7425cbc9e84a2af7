"""Data, models and optimizers by name and by import path, and what is wrong with them."""

from __future__ import annotations

import sys

import pytest

from constrained import ConfigErrors
from constrained.experiments import ExperimentError
from constrained.experiments.runner import prepare

OWN = """
import torch
from torch import nn
from constrained.experiments import Task

def points(n, seed):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.rand(n, 2, generator=generator)
    targets = inputs.prod(-1, keepdim=True)
    return (inputs[n // 2:], targets[n // 2:]), (inputs[:n // 2], targets[:n // 2])

class Net(nn.Module):
    def __init__(self, width=3):
        super().__init__()
        self.layer = nn.Linear(2, width)
        self.last = nn.Linear(width, 1)

    def forward(self, inputs):
        return self.last(self.layer(inputs).tanh())

class Lazy(nn.Sequential):
    def __init__(self):
        super().__init__(nn.LazyLinear(4), nn.Tanh(), nn.LazyLinear(1))

class Slow(torch.optim.SGD):
    def __init__(self, params, factor):
        super().__init__(params, lr=factor / 10)

class Inside:
    Net = Net

def broken_data():
    return 3

def raising():
    raise KeyError("no file")

def no_module():
    return dict()

def no_optimizer(params):
    return params

class Wrong(Net):
    def forward(self, inputs):
        return inputs @ inputs

class Misshapen(Net):
    def forward(self, inputs):
        return super().forward(inputs).squeeze(-1)

number = 3
"""

BY_PATH = {
    "data": {"name": "users_own:points", "n": 8},
    "model": {"name": "users_own:Net", "width": 4},
    "optimizer": {"name": "users_own:Slow", "factor": 1.0},
    "constraints": {"layer.weight": "oblique"},
}


def sentences(path) -> list[str]:
    with pytest.raises(ValueError) as caught:
        prepare(path)
    error = caught.value
    found = error.exceptions if isinstance(error, ConfigErrors) else [error]
    assert all(isinstance(each, ExperimentError) for each in found)
    assert all("\n" not in str(each) for each in found)
    return [str(each).removeprefix(f"{path}: ") for each in found]


class TestImportPaths:
    def test_all_three(self, bench):
        bench.module(OWN)
        outcome = bench.run(BY_PATH)
        model = outcome.models["constrained"]
        assert type(model).__name__.startswith("Net")
        assert model.layer.weight.shape == (4, 2)
        assert set(outcome.metrics["networks"]["constrained"]) >= {"test_loss"}
        assert "test_accuracy" not in outcome.metrics["networks"]["constrained"]

    def test_a_name_inside_of_a_class_and_a_factory_of_another_library(self, bench):
        bench.module(OWN)
        prepare(bench.write({**BY_PATH, "model": "users_own:Inside.Net"}))
        changes = {"model": {"name": "torch.nn:Linear", "in_features": 4, "out_features": 3}}
        prepare(bench.write({**changes, "constraints": {"weight": "oblique"}}))

    def test_the_path_of_the_program_is_as_before(self, bench):
        bench.module(OWN)
        before = list(sys.path)
        prepare(bench.write(BY_PATH))
        assert sys.path == before

    def test_the_seed_is_given_to_functions_that_take_one(self, bench):
        bench.module(OWN)
        first, same, other = (
            prepare(bench.write(BY_PATH), seed=seed).task.train[0].tolist() for seed in (1, 1, 2)
        )
        assert first == same != other
        fixed = {**BY_PATH, "data": {"name": "users_own:points", "n": 8, "seed": 2}}
        assert prepare(bench.write(fixed), seed=1).task.train[0].tolist() == other

    def test_lazy_modules_have_their_shapes_before_the_plan(self, bench):
        bench.module(OWN)
        changes = {**BY_PATH, "model": "users_own:Lazy", "constraints": {"0.weight": "oblique"}}
        assert [row.shape for row in prepare(bench.write(changes)).plan.rows] == [(4, 2)]

    def test_constraints_import_nothing(self, bench):
        bench.module("raise SystemExit('imported')", "users_own_constraint")
        (sentence,) = sentences(
            bench.write({"constraints": {"0.weight": "users_own_constraint:C"}})
        )
        assert sentence.startswith("constraints: ")
        assert "users_own_constraint" not in sys.modules


class TestErrors:
    @pytest.mark.parametrize(
        ("changes", "part"),
        [
            ({"data": "digit"}, "data.name is 'digit', which is neither built in nor an import "
             "path, 'package.module:function'. Did you mean 'digits'?"),
            ({"model": "transformer"}, "model.name is 'transformer', which is neither built in nor "
             "an import path, 'package.module:function'. Built in are recurrent, mlp."),
            ({"optimizer": "adam"}, "Did you mean 'Adam'?"),
            ({"optimizer": "Optimizer"}, "neither built in"),
            ({"optimizer": "lr_scheduler"}, "neither built in"),
            ({"data": "users_none:f"}, "data.name: the module 'users_none' cannot be imported: No "
             "module named 'users_none'."),
            ({"data": ":f"}, "neither built in nor an import path"),
            ({"data": "users_own:"}, "neither built in nor an import path"),
            ({"data": "users_own:pionts"}, "data.name: 'users_own' has no 'pionts'. Did you mean "
             "'points'?"),
            ({"data": "users_own:number"}, "data.name: 'users_own:number' is a int, where a "
             "function or a class is expected."),
            ({"data.shuffle": True}, "data: 'iris' has no argument 'shuffle'. It takes "
             "test_fraction, seed."),
            ({"data.test_fractoin": 0.2}, "Did you mean 'test_fraction'?"),
            ({"data.test_fraction": 2}, "data: test_fraction must be at most 0.95, got 2."),
            ({"data": "users_own:points"}, "data: 'users_own:points' lacks its argument 'n': "
             "write it under data, as in 'n: ...'."),
            ({"data": "users_own:broken_data"}, "data: 'users_own:broken_data' is of no use: it "
             "must return a constrained.experiments.Task, or a pair"),
            ({"data": "users_own:raising"}, "data: 'users_own:raising' raised KeyError: 'no file' "
             "(in users_own.py, line 35)."),
            ({"model.hidden": 3}, "model: hidden must be a list of whole numbers, got 3."),
            ({"model.hidden": [0]}, "model: hidden must be at least 1, got 0."),
            ({"model": "users_own:no_module"}, "model.name: 'users_own:no_module' returned a dict, "
             "and no torch.nn.Module."),
            ({"model": {"name": "mlp", "inputs": 5}}, "model: Sequential raised RuntimeError: mat1 "
             "and mat2 shapes cannot be multiplied (2x4 and 5x32), applied to inputs of the shape "
             "(2, 4) and torch.float32."),
            ({**BY_PATH, "model": "users_own:Misshapen"}, "model: the loss of outputs ((2,)) and "
             "targets ((2, 1), torch.float32) cannot be computed: ValueError: the outputs have the "
             "shape (2,), and the targets (2, 1)"),
            ({"optimizer.lr": -1}, "optimizer: 'SGD' raised ValueError: Invalid learning rate: -1"),
            ({"optimizer.momentom": 0.9}, "optimizer: 'SGD' has no argument 'momentom'. Did you "
             "mean 'momentum'?"),
            ({"optimizer": "users_own:no_optimizer"}, "returned a list, and no "
             "torch.optim.Optimizer."),
            ({"optimizer.param_groups": {"0.wieght": {"lr": 1.0}}}, "optimizer.param_groups: No "
             "tensor of Sequential matches '0.wieght'. Did you mean '0.weight'?"),
            ({"optimizer.param_groups": {"0.weight": {"rl": 1.0}}}, "optimizer.param_groups: "
             "'0.weight' has the option 'rl', which SGD does not have; it has "),
            ({"constraints": {"0.weight": "ortogonal"}}, "constraints: '0.weight': Unknown "
             "constraint 'ortogonal'. Did you mean 'orthogonal'?"),
            ({"constraints": {"0.weight": None}}, "constraints: no tensor of the model is "
             "constrained by them."),
        ],
    )  # fmt: skip
    def test_one(self, bench, changes, part):
        bench.module(OWN.strip())
        (sentence,) = sentences(bench.write(changes))
        assert part in sentence
        assert [path.name for path in bench.folder.iterdir() if path.is_dir()] in (
            [], ["__pycache__"]
        )  # fmt: skip

    def test_a_module_that_raises_an_error(self, bench):
        bench.module("import math\n\nmath.sqrt(-1)\n", "users_own_broken")
        (sentence,) = sentences(bench.write({"model": "users_own_broken:Net"}))
        assert sentence == (
            "model.name: the module 'users_own_broken' cannot be imported: ValueError: math domain "
            "error (in users_own_broken.py, line 3)."
        )

    def test_all_at_once(self, bench):
        config = {"0.weight": "ortogonal", "9.weight": "sphere", "2.bias": "orthogonal"}
        found = sentences(bench.write({"constraints": config, "optimizer": "adam"}))
        assert len(found) == 4
        assert sum(sentence.startswith("constraints: ") for sentence in found) == 3

    def test_data_model_and_optimizer_at_once(self, bench):
        changes = {"data": "digit", "model": {"name": "mlp", "hiden": [3]}, "optimizer": "adam"}
        data, model, optimizer = sentences(bench.write(changes))
        assert data.startswith("data.name is 'digit'")
        assert model.startswith("model: 'mlp' has no argument 'hiden'")
        assert optimizer.startswith("optimizer.name is 'adam'")

    def test_a_factory_that_ends_the_program(self, bench):
        bench.module("def make():\n    raise SystemExit(7)\n")
        (sentence,) = sentences(bench.write({"model": "users_own:make"}))
        assert sentence.startswith("model: 'users_own:make' raised SystemExit: 7")

    def test_arguments_that_are_missing_are_one_sentence(self, bench):
        model = {"name": "torch.nn:Linear", "bias": True}
        (sentence,) = sentences(bench.write({"model": model}))
        assert sentence == (
            "model: 'torch.nn:Linear' lacks its arguments 'in_features', 'out_features': write "
            "them under model, as in 'in_features: ...'."
        )

    def test_a_device_that_there_is_not(self, bench):
        with pytest.raises(ExperimentError, match="the device 'gpu'"):
            prepare(bench.write(), device="gpu")
