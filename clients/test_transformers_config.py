"""Hugging Face's models by a config of six lines: trained, resumed, saved, served, published."""

import json
import re

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_transformers import (
    Sentences,
    arguments,
    bert,
    gpt2,
    hubert,
    llama,
    tokens,
)
from trained import same, trains, values
from transformers import (
    AutoModelForAudioClassification,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    Trainer,
)

from constrained import constrain, load, plan, release, save, spec, tensor_paths

# In each: an exception, which takes effect, and a later rule that overrides an earlier one.
CONFIGS = {
    "gpt2": """
        transformer.wte.weight: sphere
        "**.c_attn.weight": {name: orthogonal, view: qkv(2)}
        "**.{attn,mlp}.c_proj.weight": spectral_norm(bound=2)
        "**.type=LayerNorm.weight": positive
        "transformer.h.1.**.c_attn.weight": null
        "**.mlp.c_proj.weight": {name: low_rank, rank: 4}
    """,
    "bert": """
        bert.embeddings.word_embeddings.weight: sphere
        "**.self.{query,key}.weight": {name: orthogonal, view: heads(2)}
        "**.intermediate.dense.weight": spectral_norm
        "**.output.dense.weight": spectral_norm(bound=2)
        bert.encoder.layer.1.attention.self.key.weight: null
        "**.layer.0.output.dense.weight": {name: low_rank, rank: 4}
    """,
    "llama": """
        model.embed_tokens.weight: sphere
        "**.{q,k}_proj.weight": {name: orthogonal, view: heads(2)}
        "**.mlp.*.weight": spectral_norm(bound=2)
        "**.type=LlamaRMSNorm.weight": [positive]
        "**.layers.1.self_attn.k_proj.weight": null
        "**.down_proj.weight": {name: low_rank, rank: 4}
    """,
    "hubert": """
        "**.{q,k}_proj.weight": {name: orthogonal, view: heads(2)}
        "**.conv_layers.*.conv.weight": {name: spectral_norm, view: conv}
        "**.feed_forward.*.weight": spectral_norm(bound=2)
        classifier.weight: max_norm(bound=1)
        "**.k_proj.weight": null
        "**.feed_forward.output_dense.weight": {name: low_rank, rank: 4}
    """,
}
MODELS = {
    "gpt2": (gpt2, AutoModelForCausalLM),
    "bert": (bert, AutoModelForMaskedLM),
    "llama": (llama, AutoModelForCausalLM),
    "hubert": (hubert, AutoModelForAudioClassification),
}

#: The tensors that are left free, and those that the last rule takes from an earlier one.
EXCEPTIONS = {
    "gpt2": ["transformer.h.1.attn.c_attn.weight"],
    "bert": ["bert.encoder.layer.1.attention.self.key.weight"],
    "llama": ["model.layers.1.self_attn.k_proj.weight"],
    "hubert": ["hubert.encoder.layers.0.attention.k_proj.weight"],
}
LOW_RANK = {
    "gpt2": [f"transformer.h.{i}.mlp.c_proj.weight" for i in range(2)],
    "bert": ["bert.encoder.layer.0.output.dense.weight"],
    "llama": [f"model.layers.{i}.mlp.down_proj.weight" for i in range(2)],
    "hubert": ["hubert.encoder.layers.0.feed_forward.output_dense.weight"],
}


def config(kind):
    return yaml.safe_load(CONFIGS[kind])


@pytest.fixture(params=MODELS)
def kind(request):
    return request.param


class Sounds(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, i):
        generator = torch.Generator().manual_seed(i)
        return {"input_values": torch.randn(400, generator=generator), "labels": i % 2}


def trainer(kind, model, folder, steps=4):
    data = Sounds() if kind == "hubert" else Sentences()
    return Trainer(model, arguments(folder, steps), train_dataset=data)


@torch.no_grad()
def logits(kind, model):
    sound = torch.randn(2, 400, generator=torch.Generator().manual_seed(9))
    return model.eval()(sound if kind == "hubert" else tokens()).logits


def spoken(model):
    return model.eval().generate(tokens()[:2], max_new_tokens=6, do_sample=False, pad_token_id=0)


def test_a_plan_says_what_the_config_does(kind):
    model = MODELS[kind][0]()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = plan(model, config(kind))
    assert not found.errors
    assert not found.unused
    assert sorted(found.exceptions) == EXCEPTIONS[kind]
    rows = {row.path: row for row in found.rows}
    for path in LOW_RANK[kind]:
        assert rows[path].constraint == "low_rank(rank=4)"
        (earlier,) = rows[path].overridden
        assert "spectral_norm" in str(config(kind)[earlier])
    assert {row.rule for row in found.rows} == {k for k, v in config(kind).items() if v is not None}
    # A dry run; then what it shows is what is done.
    assert not spec(model)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert list(spec(constrain(model, found))) == list(rows)


def heads(kind, model):
    """The matrix of each head by the layer's own formula."""
    if kind == "gpt2":
        fused = model.transformer.h[0].attn.c_attn
        # x @ weight + bias, cut into q, k and v as attention cuts it.
        return [h for part in fused.weight.split(16, dim=1) for h in part.T.split(8)]
    layer = {
        "bert": lambda: model.bert.encoder.layer[0].attention.self.query,
        "llama": lambda: model.model.layers[0].self_attn.q_proj,
        "hubert": lambda: model.hubert.encoder.layers[0].attention.q_proj,
    }[kind]()
    return list(layer.weight.split(8))


def test_it_is_trained_in_its_sets(kind, tmp_path):
    model = constrain(MODELS[kind][0](), config(kind))
    with trains(model):
        trainer(kind, model, tmp_path).train()
    found = heads(kind, model)
    assert len(found) == (6 if kind == "gpt2" else 2)
    for head in found:
        torch.testing.assert_close(head @ head.T, torch.eye(8), rtol=0, atol=1e-5)
    for path in LOW_RANK[kind]:
        found = torch.linalg.svdvals(values(model)[path])
        assert found[3] > 1e-3 > 100 * found[4]


def test_the_same_tensors_decay(kind, tmp_path):
    """The Trainer chooses them by their names: biases and norms do not decay."""

    def decaying(model):
        names = trainer(kind, model, tmp_path).get_decay_parameter_names(model)
        # Of tied tensors the Trainer names both; the optimizer has one.
        return {path for name, path in tensor_paths(model).items() if name in names}

    model = MODELS[kind][0]()
    expected = decaying(model)
    assert 0 < len(expected) < len(set(tensor_paths(model).values()))
    assert decaying(constrain(model, config(kind))) == expected


def test_a_new_process_would_resume(kind, tmp_path):
    """By the same config and a checkpoint of the Trainer, from other random numbers."""
    model = constrain(MODELS[kind][0](), config(kind))
    trainer(kind, model, tmp_path / "a").train()
    torch.manual_seed(1)
    other = constrain(MODELS[kind][0](), config(kind))
    checkpoint = str(tmp_path / "a" / "checkpoint-2")
    trainer(kind, other, tmp_path / "b").train(resume_from_checkpoint=checkpoint)
    # Up to rounding: singular vectors that are followed from step to step are in no checkpoint.
    same(model, other, 1e-5)
    torch.testing.assert_close(logits(kind, model), logits(kind, other))


def test_it_is_saved_and_goes_on_elsewhere(kind, tmp_path):
    make, _ = MODELS[kind]
    model = constrain(make(), config(kind))
    trainer(kind, model, tmp_path / "run").train()
    model.config.save_pretrained(tmp_path)
    save(model, tmp_path)
    new = load(tmp_path, type(model)(type(model.config).from_pretrained(tmp_path)))
    same(model, new)
    assert torch.equal(logits(kind, model), logits(kind, new))
    # The spec is a config too, and JSON holds it.
    assert spec(constrain(make(), json.loads(json.dumps(spec(new))))) == spec(model)
    with trains(new):
        trainer(kind, new, tmp_path / "more").train()


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_it_speaks_with_and_without_its_constraints(kind, tmp_path):
    model = constrain(MODELS[kind][0](), config(kind))
    trainer(kind, model, tmp_path).train()
    said = spoken(model)
    assert said.shape == (2, 14)
    save(model, tmp_path)
    assert torch.equal(spoken(load(tmp_path, MODELS[kind][0]())), said)
    assert torch.equal(spoken(release(model)), said)


def test_a_released_model_is_ready_to_be_pushed(kind, tmp_path):
    make, auto = MODELS[kind]
    plain = make()
    trainer(kind, plain, tmp_path / "run").train()
    plain.save_pretrained(tmp_path / "plain")
    model = constrain(make(), config(kind))
    trainer(kind, model, tmp_path / "run").train()
    expected = logits(kind, model)
    release(model).save_pretrained(tmp_path / "push")
    # What everybody else writes: the same files, the same keys, the same description.
    files = [{p.name for p in (tmp_path / where).iterdir()} for where in ("plain", "push")]
    assert files[0] == files[1]
    theirs, ours = (load_file(tmp_path / w / "model.safetensors") for w in ("plain", "push"))
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
    assert all(v.is_contiguous() and v.dtype is theirs[k].dtype for k, v in ours.items())
    texts = [(tmp_path / where / "config.json").read_text() for where in ("plain", "push")]
    assert texts[0] == texts[1]
    served, found = auto.from_pretrained(tmp_path / "push", output_loading_info=True)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    assert type(served) is type(plain)
    torch.testing.assert_close(logits(kind, served), expected)


WRONG = {
    "a misspelt path": (
        '"**.{q,k}_prj.weight": orthogonal',
        r"No tensor .* matches '\*\*\.{q,k}_prj\.weight'\. Did you mean '\*\*\.q_proj\.weight'",
    ),
    "a misspelt name": (
        '"**.q_proj.weight": orthogonl',
        r"'\*\*\.q_proj\.weight': Unknown constraint 'orthogonl'. Did you mean 'orthogonal'\?",
    ),
    "a misspelt type": (
        '"**.type=LlamaRMSNrm.weight": positive',
        r"No module of the model has the type .* Did you mean 'LlamaRMSNorm'\?",
    ),
    "heads that it does not have": (
        '"**.0.**.q_proj.weight": {name: orthogonal, view: heads(3)}',
        r"0.self_attn.q_proj.weight': The view 'heads\(3\)' .* 16 outputs are not 3 equal parts",
    ),
    "a rank that is too large": (
        '"**.0.mlp.down_proj.weight": low_rank(rank=17)',
        r"0.mlp.down_proj.weight': low_rank\(rank=17\): .* at least 17 rows .* \(16, 32\)",
    ),
    "tied tensors apart": (
        "{lm_head.weight: sphere, model.embed_tokens.weight: ball}",
        r"tied",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_told_in_a_sentence(name):
    text, sentence = WRONG[name]
    model = llama()
    before = [*model.state_dict()]
    (error,) = plan(model, yaml.safe_load(text)).errors
    assert re.search(sentence, str(error)) and "\n" not in str(error)
    with pytest.raises(ValueError, match=sentence):
        constrain(model, yaml.safe_load(text))
    assert not spec(model) and [*model.state_dict()] == before
