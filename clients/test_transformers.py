"""Hugging Face's models: tied embeddings, save_pretrained, from_pretrained, the Trainer."""

import copy

import pytest
import torch
from safetensors.torch import load_file
from tiny_transformers import (
    TOKENS,
    Sentences,
    arguments,
    bert,
    gpt2,
    hubert_config,
    llama,
    logits,
    tokens,
)
from torch import nn
from trained import same, trains, values
from transformers import (
    BertForMaskedLM,
    BertModel,
    BertPreTrainedModel,
    GPT2LMHeadModel,
    HubertModel,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Trainer,
)

from constrained import assert_feasible, baked_state_dict, constrain, load, release, save, spec

CONSTRAINTS = {
    "gpt2": {
        "transformer.wte.weight": "sphere",
        "transformer.h.*.mlp.c_fc.weight": "orthogonal",
        "transformer.h.*.attn.c_proj.weight": "low_rank(rank=4)",
    },
    "bert": {
        "bert.embeddings.word_embeddings.weight": "sphere",
        "bert.encoder.layer.*.attention.self.query.weight": "orthogonal",
        "bert.encoder.layer.*.output.dense.weight": "low_rank(rank=4)",
    },
    "llama": {
        "model.embed_tokens.weight": "sphere",
        "model.layers.*.self_attn.q_proj.weight": "orthogonal",
        "model.layers.*.mlp.up_proj.weight": "low_rank(rank=4)",
    },
}
MODELS = {
    "gpt2": (gpt2, CONSTRAINTS["gpt2"]),
    "bert": (bert, CONSTRAINTS["bert"]),
    "llama": (llama, CONSTRAINTS["llama"]),
    "untied llama": (lambda: llama(tied=False), CONSTRAINTS["llama"]),
}


class Constrained(GPT2LMHeadModel):
    """A class that constrains what it makes, as its users write it."""

    def __init__(self, config):
        super().__init__(config)
        constrain(self, CONSTRAINTS["gpt2"])


class ConstrainedBert(BertForMaskedLM):
    def __init__(self, config):
        super().__init__(config)
        constrain(self, CONSTRAINTS["bert"])
        self.post_init()


class ConstrainedLlama(LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        constrain(self, CONSTRAINTS["llama"])


class Classifier(BertPreTrainedModel):
    """A new, constrained head on a pretrained body."""

    def __init__(self, config):
        super().__init__(config)
        self.bert = BertModel(config)
        self.classifier = nn.Linear(config.hidden_size, 4)
        constrain(self, "classifier.weight", "orthogonal")
        self.post_init()


CLASSES = {
    "gpt2": (gpt2, Constrained),
    "bert": (bert, ConstrainedBert),
    "llama": (llama, ConstrainedLlama),
    "untied llama": (lambda: llama(tied=False), ConstrainedLlama),
}


def fit(model, steps=3):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=tokens(), labels=tokens()).loss.backward()
        optimizer.step()


@pytest.fixture(params=MODELS)
def model(request):
    make, constraints = MODELS[request.param]
    return constrain(make(), constraints)


@pytest.fixture(params=CLASSES)
def pair(request):
    """A plain model, and a class of the same models with constraints."""
    make, constrained_class = CLASSES[request.param]
    return make(), constrained_class


def test_it_trains(model):
    with trains(model):
        fit(model)
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    tied = model.config.tie_word_embeddings
    assert torch.equal(inputs.weight, outputs.weight) is tied


def test_saved_and_loaded(model, tmp_path):
    fit(model)
    twin = copy.deepcopy(model)
    model.save_pretrained(tmp_path)
    fit(twin)
    twin.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=False)
    same(model, twin)
    assert torch.equal(logits(model), logits(twin))


def test_a_file_of_save_goes_into_a_new_model_and_is_served(model, tmp_path):
    fit(model)
    save(model, tmp_path)
    model.config.save_pretrained(tmp_path)
    new = load(tmp_path, type(model)(type(model.config).from_pretrained(tmp_path)))
    same(model, new)
    assert spec(new) == spec(model) and torch.equal(logits(model), logits(new))
    release(new).save_pretrained(tmp_path / "plain")
    served = type(model).from_pretrained(tmp_path / "plain")
    torch.testing.assert_close(logits(served), logits(model))
    # What a plain model was saved as goes into a constrained one.
    fit(model)
    torch.testing.assert_close(logits(load(tmp_path / "plain", model)), logits(new))


def test_a_tied_tensor_is_saved_once_under_the_name_of_its_first_owner(model, tmp_path):
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    inside = {key for key in model.state_dict() if "parametrizations" in key}
    twice = {key for key in inside if key.startswith(("lm_head", "cls"))}
    assert {key for key in saved if "parametrizations" in key} == (
        inside - twice if model.config.tie_word_embeddings else inside
    )


def test_baked_checkpoints_are_plain(model, tmp_path):
    fit(model)
    model.save_pretrained(tmp_path, state_dict=baked_state_dict(model))
    plain = type(model).from_pretrained(tmp_path)
    assert not spec(plain)
    torch.testing.assert_close(logits(plain), logits(model))


def test_tie_weights_and_post_init_change_nothing(model):
    fit(model)
    before, parameters = values(model), dict(model.named_parameters())
    model.tie_weights()
    model.post_init()
    after = dict(model.named_parameters())
    assert list(after) == list(parameters)
    assert all(after[name] is parameter for name, parameter in parameters.items())
    for path, value in values(model).items():
        assert torch.equal(value, before[path])


def is_tied(model):
    return torch.equal(model.get_input_embeddings().weight, model.get_output_embeddings().weight)


@pytest.mark.parametrize("new", ["constrained", "copy"])
@pytest.mark.parametrize("kind", CONSTRAINTS)
def test_tie_weights_ties_new_embeddings(kind, new, tmp_path):
    make, constrained_class = CLASSES[kind]
    model = constrain(make(), CONSTRAINTS[kind])
    embeddings = copy.deepcopy(model.get_input_embeddings())
    if new == "constrained":
        embeddings = constrain(nn.Embedding(TOKENS, 16), "weight", "sphere")
    expected = embeddings.weight.detach().clone()
    model.set_input_embeddings(embeddings)
    model.tie_weights()
    torch.testing.assert_close(model.get_output_embeddings().weight, expected)
    with trains(model):
        fit(model)
    assert is_tied(model)
    model.save_pretrained(tmp_path)
    loaded = constrained_class.from_pretrained(tmp_path)
    same(loaded, model)
    assert torch.equal(logits(loaded), logits(model))


def test_tie_weights_ties_new_embeddings_of_another_size():
    model = constrain(llama(), CONSTRAINTS["llama"])
    new = constrain(nn.Embedding(TOKENS + 4, 16), "weight", "sphere")
    model.set_input_embeddings(new)
    model.config.vocab_size = TOKENS + 4
    model.tie_weights()
    fit(model)
    assert is_tied(model)
    assert logits(model).shape[-1] == TOKENS + 4


def test_tie_weights_ties_heads_that_were_constrained_apart():
    embeddings, head = "model.embed_tokens.weight", "lm_head.weight"
    model = constrain(llama(tied=False), {embeddings: "sphere", head: "sphere"})
    model.tie_weights()
    assert not is_tied(model)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    fit(model)
    assert is_tied(model)
    assert list(spec(model)) == [embeddings]


@pytest.mark.parametrize("other", [None, "ball"])
def test_tie_weights_says_what_cannot_be_tied(other):
    model = constrain(llama(tied=False), "lm_head.weight", "sphere")
    if other:
        constrain(model, "model.embed_tokens.weight", other)
    before, constraints = logits(model), spec(model)
    model.config.tie_word_embeddings = True
    with pytest.raises(ValueError, match=r"'lm_head.weight', .* tied to 'model.embed_.* release"):
        model.tie_weights()
    assert torch.equal(logits(model), before)
    assert spec(model) == constraints
    release(model, "lm_head.weight")
    model.tie_weights()
    fit(model)
    assert is_tied(model)


@pytest.mark.parametrize("size", [TOKENS + 8, TOKENS - 8])
def test_resized_embeddings_stay_constrained(model, size):
    kept = min(size, TOKENS)
    before, constraints = model.get_input_embeddings().weight[:kept].detach().clone(), spec(model)
    embeddings = model.resize_token_embeddings(size)
    assert embeddings.num_embeddings == size
    assert embeddings.weight.shape == (size, 16)
    torch.testing.assert_close(embeddings.weight[:kept], before)
    assert spec(model) == constraints
    assert_feasible(model)
    assert logits(model, kept).shape[-1] == size
    tied = model.config.tie_word_embeddings
    assert torch.equal(embeddings.weight, model.get_output_embeddings().weight) is tied
    with trains(model):
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        model(input_ids=tokens() % 20, labels=tokens() % 20).loss.backward()
        optimizer.step()


def test_embeddings_that_cannot_be_resized():
    model = gpt2()
    model.resize_token_embeddings(16)
    constrain(model, "transformer.wte.weight", "symmetric")
    before = logits(model, 16)
    with pytest.raises(ValueError, match=r"'transformer.wte.weight' .* \(24, 16\) .*release"):
        model.resize_token_embeddings(24)
    assert torch.equal(logits(model, 16), before)
    assert model.config.vocab_size == model.get_input_embeddings().num_embeddings == 16
    with trains(model):
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        model(input_ids=tokens() % 16, labels=tokens() % 16).loss.backward()
        optimizer.step()


def test_a_class_that_constrains_loads_plain_checkpoints(pair, tmp_path):
    plain, constrained_class = pair
    plain.save_pretrained(tmp_path)
    loaded = constrained_class.from_pretrained(tmp_path)
    expected = constrain(copy.deepcopy(plain), spec(loaded))
    assert spec(loaded)
    same(loaded, expected)
    torch.testing.assert_close(logits(loaded), logits(expected))
    with trains(loaded):
        fit(loaded)
    tied = loaded.config.tie_word_embeddings
    inputs, outputs = loaded.get_input_embeddings(), loaded.get_output_embeddings()
    assert torch.equal(inputs.weight, outputs.weight) is tied


def test_a_class_that_constrains_loads_its_own_checkpoints(pair, tmp_path):
    plain, constrained_class = pair
    model = constrained_class(plain.config)
    fit(model)
    model.save_pretrained(tmp_path)
    loaded = constrained_class.from_pretrained(tmp_path)
    assert spec(loaded) == spec(model)
    same(loaded, model)
    assert torch.equal(logits(loaded), logits(model))
    with trains(loaded):
        fit(loaded)
    tied = loaded.config.tie_word_embeddings
    inputs, outputs = loaded.get_input_embeddings(), loaded.get_output_embeddings()
    assert torch.equal(inputs.weight, outputs.weight) is tied


HEADS = {
    "gpt2": (gpt2, GPT2LMHeadModel, ["lm_head.weight"]),
    "bert": (bert, BertForMaskedLM, ["cls.predictions.decoder.weight"]),
    "llama": (llama, LlamaForCausalLM, ["lm_head.weight"]),
    "untied llama": (lambda: llama(tied=False), LlamaForCausalLM, ["lm_head.weight"]),
    "both": (llama, LlamaForCausalLM, ["lm_head.weight", "model.embed_tokens.weight"]),
}


@pytest.mark.parametrize("kind", HEADS)
def test_a_class_that_constrains_its_head(kind, tmp_path):
    make, base, names = HEADS[kind]

    class Headed(base):
        def __init__(self, config):
            super().__init__(config)
            constrain(self, dict.fromkeys(names, "sphere"))

    model = Headed(make().config)
    fit(model)
    model.save_pretrained(tmp_path / "own")
    model.save_pretrained(tmp_path / "plain", state_dict=baked_state_dict(model))
    loads = {
        "own": Headed.from_pretrained(tmp_path / "own", output_loading_info=True),
        "plain": Headed.from_pretrained(tmp_path / "plain", output_loading_info=True),
        "given": Headed.from_pretrained(
            None, config=model.config, state_dict=model.state_dict(), output_loading_info=True
        ),
    }
    for loaded, found in loads.values():
        assert not found["missing_keys"]
        assert spec(loaded) == spec(model)
        torch.testing.assert_close(logits(loaded), logits(model))
        with trains(loaded):
            fit(loaded)
        inputs, outputs = loaded.get_input_embeddings(), loaded.get_output_embeddings()
        assert torch.equal(inputs.weight, outputs.weight) is model.config.tie_word_embeddings


@pytest.mark.parametrize("kind", ["own", "plain"])
def test_tensors_that_have_other_names_in_a_file(kind, tmp_path):
    """What is mlp in the model is block_sparse_moe in its checkpoints."""
    gate, experts = "model.layers.0.mlp.gate.weight", "model.layers.0.mlp.experts.down_proj"

    class Mixture(MixtralForCausalLM):
        def __init__(self, config):
            super().__init__(config)
            constrain(self, {gate: "sphere", experts: "low_rank(rank=2)"})

    config = MixtralConfig(
        vocab_size=TOKENS,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=2,
        max_position_embeddings=16,
    )
    model = Mixture(config)
    with trains(model):
        fit(model)
    state_dict = baked_state_dict(model) if kind == "plain" else None
    model.save_pretrained(tmp_path, state_dict=state_dict)
    keys = load_file(tmp_path / "model.safetensors")
    assert any("block_sparse_moe" in key for key in keys)
    loaded, found = Mixture.from_pretrained(tmp_path, output_loading_info=True)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    assert spec(loaded) == spec(model)
    torch.testing.assert_close(logits(loaded), logits(model))


def test_a_new_constrained_head_on_a_pretrained_body(tmp_path):
    plain = bert()
    plain.save_pretrained(tmp_path)
    model = Classifier.from_pretrained(tmp_path)
    body = plain.bert.embeddings.word_embeddings.weight
    assert torch.equal(model.bert.embeddings.word_embeddings.weight, body)
    assert spec(model) == {"classifier.weight": {"name": "orthogonal"}}
    assert_feasible(model)
    assert torch.equal(model.classifier.bias, torch.zeros(4))
    model.save_pretrained(tmp_path / "trained")
    same(model, Classifier.from_pretrained(tmp_path / "trained"))


def test_initialisation_reaches_constrained_tensors():
    model = Classifier(bert().config)
    assert_feasible(model)
    with trains(model):
        out = model.classifier(model.bert(tokens()).last_hidden_state)
        out.square().mean().backward()
        torch.optim.SGD(model.parameters(), lr=1.0).step()


def test_released_models_are_saved_as_plain_ones(model, tmp_path):
    fit(model)
    expected = logits(model)
    release(model).save_pretrained(tmp_path)
    plain = type(model).from_pretrained(tmp_path)
    torch.testing.assert_close(logits(plain), expected)


def test_the_trainer_saves_and_resumes(model, tmp_path):
    twin = copy.deepcopy(model)
    with trains(model):
        Trainer(model, arguments(tmp_path / "a", 4), train_dataset=Sentences()).train()
    checkpoint = tmp_path / "a" / "checkpoint-2"
    resumed = Trainer(twin, arguments(tmp_path / "b", 4), train_dataset=Sentences())
    resumed.train(resume_from_checkpoint=str(checkpoint))
    same(model, twin)
    assert torch.equal(logits(model), logits(twin))


def test_hubert_whose_positions_have_torchs_weight_norm(tmp_path):
    plain = HubertModel(hubert_config())
    model = copy.deepcopy(plain)
    constrain(model, "encoder.layers.*.attention.q_proj.weight", "orthogonal")
    sound = torch.randn(2, 400)
    with trains(model):
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        model(sound).last_hidden_state.square().mean().backward()
        optimizer.step()
    expected = model.eval()(sound).last_hidden_state
    model.save_pretrained(tmp_path)
    twin = constrain(copy.deepcopy(plain), spec(model))
    twin.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=False)
    same(model, twin)
    # What is not ours stays: the plain class has weight norm too, and loads the released model.
    release(model).save_pretrained(tmp_path / "plain")
    again = HubertModel.from_pretrained(tmp_path / "plain").eval()
    torch.testing.assert_close(again(sound).last_hidden_state, expected)


def test_a_model_that_was_constrained_from_outside_writes_a_plain_checkpoint(tmp_path):
    model = constrain(llama(tied=False), "**.q_proj.weight", "orthogonal")
    model.save_pretrained(tmp_path, state_dict=baked_state_dict(model))
    loaded = LlamaForCausalLM.from_pretrained(tmp_path)
    ids = torch.arange(6)[None]
    torch.testing.assert_close(loaded.eval()(ids).logits, model.eval()(ids).logits)


def test_the_bias_of_a_head_that_its_decoder_shares():
    model = constrain(bert(), "cls.predictions.bias", "ball(radius=100)")
    model.post_init()
    assert model.cls.predictions.bias is model.cls.predictions.decoder.bias
    assert list(spec(model)) == ["cls.predictions.bias"]
