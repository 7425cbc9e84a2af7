"""Hydra: the constraints of an experiment, changed and swept over on its command line."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra_app import Network
from omegaconf import OmegaConf
from trained import values

from constrained import assert_feasible, constrain, load, plan, spec

HERE = Path(__file__).parent

DEFAULTS = {
    "rnn.weight_hh_l0": "orthogonal",
    "rnn.bias_*": "ball",
    "fc.weight": "spectral_norm",
    "fc.bias": "ball",
}


def run(*overrides):
    """Run the experiment as on a command line."""
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    command = [sys.executable, str(HERE / "hydra_app.py"), *overrides]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def composed(*overrides):
    with initialize_config_dir(str(HERE / "hydra_config"), version_base=None):
        return compose("config", list(overrides)).constraints


def test_a_multirun_over_three_names(tmp_path):
    names = "sphere", "ball", "orthogonal"
    ran = run("-m", f"hydra.sweep.dir={tmp_path}", f"constraints.fc.weight={','.join(names)}")
    assert ran.returncode == 0, ran.stderr
    losses = re.findall(r"loss (\S+)", ran.stdout)
    assert len(set(losses)) == 3
    for number, name in enumerate(names):
        start = constrain(Network(), {**DEFAULTS, "fc.weight": name})
        model = load(tmp_path / str(number), Network())
        assert spec(model) == spec(start)
        assert_feasible(model)
    norms = [values(load(tmp_path / str(i), Network()))["fc.weight"].norm(dim=1) for i in range(3)]
    torch.testing.assert_close(norms[0], torch.ones(4))
    assert norms[1].max() <= 1 + 1e-6 and norms[1].min() < 0.99


def test_a_run_without_a_part_of_its_constraints(tmp_path):
    constraint = "constraints.fc.weight={name:low_rank,rank:2}"
    ran = run(f"hydra.run.dir={tmp_path}", "~constraints.rnn", constraint)
    assert ran.returncode == 0, ran.stderr
    model = load(tmp_path, Network())
    assert spec(model) == {
        "fc.weight": {"name": "low_rank", "rank": 2},
        "fc.bias": {"name": "ball"},
    }
    assert torch.linalg.matrix_rank(model.fc.weight) == 2


def test_a_run_with_errors_ends_with_all_of_them(tmp_path):
    wrong = "constraints.fc.weight=spher", "+constraints.rnn.bias_hh_l1=ball"
    ran = run(f"hydra.run.dir={tmp_path}", *wrong)
    assert ran.returncode == 1
    assert "Network cannot be constrained: 2 errors." in ran.stderr
    assert "'fc.weight': Unknown constraint 'spher'. Did you mean 'sphere'?" in ran.stderr
    assert "matches 'rnn.bias_hh_l1'. Did you mean 'rnn.bias_hh_l0'?" in ran.stderr
    assert not list(tmp_path.rglob("*.safetensors"))


OVERRIDES = {
    "nothing": ((), DEFAULTS),
    "a name": (("constraints.fc.weight=sphere",), {**DEFAULTS, "fc.weight": "sphere"}),
    "an exception": (("constraints.fc.weight=null",), {**DEFAULTS, "fc.weight": None}),
    "one more": (
        ("+constraints.rnn.weight_ih_l0=ball",),
        {**DEFAULTS, "rnn.weight_ih_l0": "ball"},
    ),
    # Parentheses are those of Hydra's own functions, unless they are in quotes.
    "a spec string": (
        ("constraints.fc.weight='low_rank(rank=2)'",),
        {**DEFAULTS, "fc.weight": "low_rank(rank=2)"},
    ),
    "a mapping": (
        ("constraints.fc.weight={name:max_norm,bound:0.5}",),
        {**DEFAULTS, "fc.weight": "max_norm(bound=0.5)"},
    ),
    "an argument of it": (
        ("constraints.fc.weight={name:max_norm,bound:0.5}", "constraints.fc.weight.bound=1e-1"),
        {**DEFAULTS, "fc.weight": "max_norm(bound=0.1)"},
    ),
    "a chain": (
        ("constraints.rnn.weight_hh_l0=[symmetric,spectral_norm]",),
        {**DEFAULTS, "rnn.weight_hh_l0": ["symmetric", "spectral_norm"]},
    ),
    "another experiment": (
        ("~constraints.rnn", "~constraints.fc.bias"),
        {"fc.weight": "spectral_norm"},
    ),
    "no constraints": (("~constraints.rnn", "~constraints.fc"), {}),
}


@pytest.mark.parametrize("name", OVERRIDES)
def test_overrides_mean_what_they_say(name):
    overrides, config = OVERRIDES[name]
    given = composed(*overrides)
    found = plan(Network(), given)
    assert not found.errors
    assert spec(constrain(Network(), found)) == spec(constrain(Network(), config))
    # What a run writes beside its results is the config again.
    again = OmegaConf.create(OmegaConf.to_yaml(given))
    assert spec(constrain(Network(), again)) == spec(constrain(Network(), config))


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (("constraints.fc=ball",), r"matches 'fc'. It is a module.* 'fc.weight', 'fc.bias'"),
        (("constraints.fc.weight=${nothing}",), r"config cannot be read: .*'nothing' not found"),
        (("constraints.fc.weight=???",), r"config cannot be read: .*[Mm]issing"),
        (("constraints.fc.weight={name:max_norm,bound:-1}",), r"'fc.weight': max_norm: bound"),
        (("constraints.fc.weight={name:max_norm,bound:nan}",), r"'fc.weight': max_norm: bound"),
        (("constraints=null",), "mapping from these to constraints, got NoneType"),
    ],
)
def test_what_is_wrong_is_told_in_a_sentence(overrides, sentence):
    with pytest.raises(ValueError, match=sentence) as told:
        constrain(Network(), composed(*overrides))
    assert "\n" not in str(told.value)
