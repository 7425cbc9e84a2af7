"""``constrained check`` on a model of transformers: an exception, an override, planted mistakes."""

import json
import subprocess
import sys

import pytest

FACTORY = """
import torch
from transformers import LlamaConfig, LlamaForCausalLM

def tiny_llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=16,
            tie_word_embeddings=False,
        )
    )
"""

#: The second rule leaves the last layer out, and the third overrides the first for one tensor.
GOOD = """
optimizer: {name: AdamW, lr: 1.0e-3}
constraints:
  model.layers.*.self_attn.{q,k,v,o}_proj.weight: orthogonal
  model.layers.1.self_attn.*.weight: null
  model.layers.0.self_attn.v_proj.weight: {name: spectral_norm, bound: 2}
  model.layers.*.mlp.**.weight: {name: ball, radius: 1.0e-1}
"""

#: A name, an argument that YAML reads as text, and a path.
MISTAKES = GOOD.replace("orthogonal", "ortogonal").replace("1.0e-1", "'1e-1'") + (
    "  model.layers.0.self_attn.q_porj.weight: sphere\n"
)


@pytest.fixture
def check(tmp_path):
    (tmp_path / "my_models.py").write_text(FACTORY, "utf-8")

    def check(config: str, *options: str):
        (tmp_path / "experiment.yaml").write_text(config, "utf-8")
        model = ("--model", "my_models:tiny_llama", "--key", "constraints")
        command = [sys.executable, "-m", "constrained", "check", "experiment.yaml", *model]
        return subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True)

    return check


def test_all_mistakes_are_shown_with_their_cures(check):
    done = check(MISTAKES)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    text = " ".join(done.stdout.split())
    assert text.count("ERROR ") == 3
    assert "Unknown constraint 'ortogonal'. Did you mean 'orthogonal'?" in text
    assert "got '1e-1' (str); YAML reads 0.1 as a number." in text
    assert (
        "No tensor of LlamaForCausalLM matches 'model.layers.0.self_attn.q_porj.weight'. Did you "
        "mean 'model.layers.0.self_attn.q_proj.weight'?"
    ) in text


def test_the_corrected_config_has_an_exception_and_an_override(check):
    done = check(GOOD, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    plan = json.loads(done.stdout)
    rows = {row["path"].removeprefix("model.layers."): row for row in plan["tensors"]}
    orthogonal = {path for path, row in rows.items() if row["constraint"] == "orthogonal()"}
    assert orthogonal == {f"0.self_attn.{name}_proj.weight" for name in "qko"}
    override = rows["0.self_attn.v_proj.weight"]
    assert override["constraint"] == "spectral_norm(bound=2.0)"
    assert override["overridden"] == ["model.layers.*.self_attn.{q,k,v,o}_proj.weight"]
    assert len(plan["exceptions"]) == 4
    assert all(path.startswith("model.layers.1.self_attn.") for path in plan["exceptions"])
    assert sum(row["constraint"] == "ball(radius=0.1)" for row in rows.values()) == 6
    assert plan["errors"] == []
