"""An experiment from its config to its users: a tiny Llama, as one would write it.

The config has an exception, an override and three mistakes. ``constrained check`` shows them with
their cures; corrected, the model is trained, monitored, saved, loaded in a new process, released,
and says the same.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tiny_transformers import Sentences, arguments, llama, logits, tokens
from trained import trains
from transformers import AutoModelForCausalLM, Trainer

from constrained import ConfigErrors, constrain, load, plan, release, save, spec
from constrained.seeing import TransformersMonitor
from constrained.seeing.sinks import read_csv

HERE = Path(__file__).parent

WRONG = """
constraints:
  "**.{q,k}_prj.weight": {name: orthogonal, view: heads(2)}
  "**.layers.1.self_attn.k_proj.weight": null
  "**.mlp.*.weight": spectral_nrm(bound=2)
  "**.down_proj.weight": {name: low_rank, rank: 17}
"""

#: Each mistake, what is right, and what the sentence about it says.
MISTAKES = [
    ("_prj", "_proj", "Did you mean '**.q_proj.weight'?"),
    ("spectral_nrm", "spectral_norm", "Did you mean 'spectral_norm'?"),
    ("rank: 17", "rank: 4", "each element must have at least 17 rows and columns"),
]

#: What serves the model knows its files only.
SERVE = """
import sys
import torch, constrained
from transformers import AutoConfig, AutoModelForCausalLM

def said(model, prompt):
    return model.eval().generate(prompt, max_new_tokens=6, do_sample=False, pad_token_id=0)

folder = sys.argv[1]
prompt = torch.load(f"{folder}/prompt.pt")
model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
constrained.load(folder, model)
constrained.assert_feasible(model)
before = said(model, prompt)
constrained.release(model).save_pretrained(f"{folder}/released")
plain = AutoModelForCausalLM.from_pretrained(f"{folder}/released")
torch.save([before, said(plain, prompt)], f"{folder}/said.pt")
"""


def right():
    text = WRONG
    for wrong, cured, _ in MISTAKES:
        text = text.replace(wrong, cured)
    return text


def run(*command):
    environment = {**os.environ, "PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}"}
    return subprocess.run(
        [sys.executable, *map(str, command)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def check(folder, text):
    """Run ``constrained check`` on a config."""
    config = folder / "experiment.yaml"
    config.write_text(text, "utf-8")
    more = "--model", "tiny_transformers:llama", "--key", "constraints", "--json"
    return run("-m", "constrained", "check", config, *more)


def spoken(model):
    return model.eval().generate(tokens()[:2], max_new_tokens=6, do_sample=False, pad_token_id=0)


def test_mistakes_are_shown_with_their_cures(tmp_path):
    done = check(tmp_path, WRONG)
    assert done.returncode == 1, done.stderr
    errors = json.loads(done.stdout)["errors"]
    for _, _, cure in MISTAKES:
        assert any(cure in sentence for sentence in errors), cure
    # The rank does not fit either of the two layers.
    assert len(errors) == 4
    wrong = yaml.safe_load(WRONG)["constraints"]
    model = llama()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert sorted(map(str, plan(model, wrong).errors)) == sorted(errors)
    with pytest.raises(ConfigErrors) as told:
        constrain(model, wrong)
    assert all(cure in str(told.value) for _, _, cure in MISTAKES)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    # When one is mended, the others are still told of.
    text = WRONG
    for left, (mistake, cured, _) in zip((2, 1, 0), MISTAKES, strict=True):
        text = text.replace(mistake, cured)
        assert str(plan(model, yaml.safe_load(text)["constraints"])).count("ERROR ") == left


def test_the_corrected_config_goes_all_the_way(tmp_path):
    done = check(tmp_path, right())
    assert done.returncode == 0, done.stdout + done.stderr
    checked = json.loads(done.stdout)
    assert checked["exceptions"] == ["model.layers.1.self_attn.k_proj.weight"]
    overrides = {row["path"]: row["overridden"] for row in checked["tensors"] if row["overridden"]}
    assert overrides == {
        f"model.layers.{i}.mlp.down_proj.weight": ["**.mlp.*.weight"] for i in range(2)
    }

    torch.manual_seed(0)
    model = constrain(llama(), yaml.safe_load(right())["constraints"])
    assert [*spec(model)] == [row["path"] for row in checked["tensors"]]
    monitor = TransformersMonitor(every=2, to=tmp_path / "log.csv")
    run_of = arguments(tmp_path / "run", 6)
    with trains(model):
        Trainer(model, run_of, train_dataset=Sentences(), callbacks=[monitor]).train()

    records = read_csv(tmp_path / "log.csv")
    assert [record.step for record in records] == [0, 2, 4, 6]
    for record in records:
        assert record.tensors.keys() == spec(model).keys()
        assert all(reading.violation < 1e-5 for reading in record.tensors.values())
    assert all(reading.drift > 0 for reading in records[-1].tensors.values())

    save(model, tmp_path)
    model.config.save_pretrained(tmp_path)
    torch.save(tokens()[:2], tmp_path / "prompt.pt")
    (tmp_path / "serve.py").write_text(SERVE, "utf-8")
    done = run(tmp_path / "serve.py", tmp_path)
    assert done.returncode == 0, done.stderr
    expected = spoken(model)
    for said in torch.load(tmp_path / "said.pt"):
        assert torch.equal(said, expected)
    served = AutoModelForCausalLM.from_pretrained(tmp_path / "released")
    assert not spec(served)
    torch.testing.assert_close(logits(served), logits(model))
    # And here, in the process that has trained it.
    assert torch.equal(spoken(load(tmp_path, llama())), expected)
    assert torch.equal(spoken(release(model)), expected)
