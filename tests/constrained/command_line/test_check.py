"""``check``: the plan of a config, and exit codes."""

from __future__ import annotations

import json

import pytest

GOOD = """
experiment: 7
model:
  constraints:
    "**.weight": {name: orthogonal, where: matrices}
    "3.weight":
    2: {weight: {name: spectral_norm, bound: 0.5, view: conv}}
"""

BAD = """
"**.weight": {name: orthogonal, where: matrices}
"0.weight": orthogonl
"2.weight": {name: spectral_norm, bound: '1e-3', view: conv}
"3": {weight: low_rank(rnk=1), bais: sphere}
"""


@pytest.fixture
def config(folder):
    def config(text: str, name: str = "c.yaml"):
        (folder / name).write_text(text, "utf-8")
        return name

    return config


def test_a_good_config(run, config):
    arguments = (config(GOOD), "--key", "model.constraints", "--model", "toy_models:net")
    result = run("check", *arguments)
    assert result.exit_code == 0, result.output
    assert "\n0.weight  8 x 8 " in result.stdout
    assert "Left unconstrained by a rule: '3.weight'." in result.stdout
    plan = json.loads(run("check", *arguments, "--json").stdout)
    assert [row["path"] for row in plan["tensors"]] == ["0.weight", "2.weight"]
    assert plan["tensors"][1]["constraint"] == (
        "spectral_norm(bound=0.5) viewed as 'o i w -> o (i w)'"
    )
    assert (plan["errors"], plan["exceptions"]) == ([], ["3.weight"])


def test_all_errors_at_once(run, config):
    result = run("check", config(BAD), "--model", "toy_models:net")
    assert result.exit_code == 1
    errors = [line for line in result.stdout.splitlines() if line.startswith("ERROR ")]
    assert len(errors) == 4
    for cure in (
        "'0.weight': Unknown constraint 'orthogonl'. Did you mean 'orthogonal'?",
        "'3.weight': low_rank has no argument 'rnk'. Did you mean 'rank'?",
        "YAML reads 0.001 as a number",
        "matches '3.bais'. Did you mean '3.bias'?",
    ):
        assert cure in result.stdout
    plan = json.loads(run("check", "c.yaml", "--model", "toy_models:net", "--json").stdout)
    assert len(plan["errors"]) == 4


def test_a_key_that_was_forgotten(run, config):
    text = "constraints: {0.weight: orthogonal}\n"
    result = run("check", config(text), "--model", "toy_models:net")
    assert result.exit_code == 1
    assert "HINT c.yaml has a key 'constraints': try --key constraints.\n" in result.stdout
    assert (
        run("check", "c.yaml", "--model", "toy_models:net", "--key", "constraints").exit_code == 0
    )


def test_a_model_may_be_an_object_and_init_is_passed_on(run, config):
    name = config("[0]\nweight = 'orthogonal'\n", "c.toml")
    strict = run("check", name, "--model", "toy_models:model", "--init", "strict")
    assert strict.exit_code == 1
    assert "orthogonal(): the value violates the constraint" in strict.stdout
    assert run("check", name, "--model", "toy_models:model").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("none.yaml", "--model", "toy_models:net"), "none.yaml: No such file or directory."),
        (("twice.yaml", "--model", "toy_models:net"), "twice.yaml: line 2, column 1: the key 'a'"),
        (("c.yaml",), "Missing option '--model'"),
        (("c.yaml", "--model", "toy_models"), "given as package.module:factory, got 'toy_models'"),
        (("c.yaml", "--model", "toy_models.py:net"), "Did you mean 'toy_models:net'?"),
        (("c.yaml", "--model", "toy_models.net"), "Did you mean 'toy_models:net'?"),
        (("c.yaml", "--model", "toy_models:ending"), "toy_models:ending() raised SystemExit: 7"),
        (("c.yaml", "--model", "toy_model:net"), "'toy_model' cannot be imported: ModuleNotFound"),
        (("c.yaml", "--model", "toy_models:nt"), "toy_models has no 'nt'. Did you mean 'net'?"),
        (("c.yaml", "--model", "toy_models:number"), "must be a model, or a function that makes"),
        (
            ("c.yaml", "--model", "toy_models:nothing"),
            "must return a torch.nn.Module, and",
        ),
        (
            ("c.yaml", "--model", "toy_models:broken"),
            "toy_models:broken() raised RuntimeError: no weights (toy_models.py, line 18).",
        ),
        (
            ("c.yaml", "--model", "toy_models:net", "--key", "model.constrants"),
            "c.yaml: there is no key 'constrants' under 'model'. Did you mean 'constraints'?",
        ),
        (("c.yaml", "--model", "toy_models:net", "--key", "experiment"), "must hold a mapping"),
        (("c.yaml", "--model", "toy_models:net", "--init", "keeps"), "Invalid value for '--init'"),
        (("c.yaml", "--model", "toy_models:net", "--import", "nope"), "'nope' cannot be imported"),
    ],
)
def test_input_that_cannot_be_had(problem, config, arguments, sentence):
    config(GOOD)
    config("a: sphere\na: ball\n", "twice.yaml")
    assert sentence in problem("check", *arguments)


def test_a_config_runs_nothing(problem, config, folder):
    text = "0.weight: !!python/object/apply:os.mkdir [made]\n"
    assert "could not determine a constructor" in problem(
        "check", config(text), "--model", "toy_models:net"
    )
    assert not (folder / "made").exists()


def test_the_command_is_named_and_not_the_function(run, config):
    result = run("check", config("0.weight: xyzzy"), "--model", "toy_models:net")
    assert "'constrained list' lists them" in result.stdout
    assert "constrained.names()" not in result.stdout
