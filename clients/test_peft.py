"""PEFT: LoRA over constrained layers, and constrained adapters."""

import copy

import pytest
import torch
import yaml
from network import data, network
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from tiny_transformers import Sentences, arguments, llama, logits
from torch import nn
from trained import same, trains, values
from transformers import GPT2Config, GPT2LMHeadModel, Trainer

from constrained import assert_feasible, baked_state_dict, constrain, load, release, save, spec


def lora(model, *modules, **more):
    return get_peft_model(model, LoraConfig(r=2, target_modules=list(modules), **more))


def fit(model, steps=3):
    x, y = data()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()


class Body(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = network()

    def forward(self, x):
        return self.layers(x)


ADAPTERS = {"**.lora_A.*.weight": "orthogonal", "**.lora_B.*.weight": "max_norm(bound=1.0)"}
LAYERS = ("layers.0", "layers.2", "layers.4", "layers.6")


def test_lora_over_constrained_layers_leaves_them_alone():
    body = Body()
    before, x = values(body), data()[0]
    expected = body(x)
    model = lora(body, *LAYERS)
    torch.testing.assert_close(model(x), expected)
    fit(model)
    assert not torch.allclose(model(x), expected)
    after = values(body)
    assert [value.tolist() for value in after.values()] == [v.tolist() for v in before.values()]
    with model.disable_adapter():
        torch.testing.assert_close(model(x), expected)


def test_adapters_are_saved_and_loaded(tmp_path):
    body = Body()
    model = lora(copy.deepcopy(body), *LAYERS)
    fit(model)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(copy.deepcopy(body), tmp_path)
    x, _ = data()
    torch.testing.assert_close(again(x), model(x))


def test_constrained_adapters_train_and_are_saved(tmp_path):
    body = Body()
    model = lora(copy.deepcopy(body), "layers.2", "layers.4")
    constrain(model, ADAPTERS)
    trained = {path for path in spec(model) if "lora" in path}
    assert len(trained) == 4
    before = values(model)
    fit(model, steps=6)
    assert_feasible(model)
    for path, value in values(model).items():
        assert (path in trained) is not torch.equal(value, before[path])
    baked = baked_state_dict(model)
    plain = lora(release(copy.deepcopy(body)), "layers.2", "layers.4")
    plain.load_state_dict(baked)
    x, _ = data()
    torch.testing.assert_close(plain(x), model(x))
    twin = lora(copy.deepcopy(body), "layers.2", "layers.4")
    constrain(twin, ADAPTERS)
    twin.load_state_dict(model.state_dict())
    same(model, twin)


def test_plain_adapters_are_loaded_and_constrained_afterwards(tmp_path):
    body = Body()
    model = lora(copy.deepcopy(body), "layers.2", "layers.4")
    constrain(model, ADAPTERS)
    fit(model)
    model.save_pretrained(tmp_path, state_dict=baked_state_dict(model))
    x, _ = data()
    again = PeftModel.from_pretrained(copy.deepcopy(body), tmp_path)
    torch.testing.assert_close(again(x), model(x))
    again = lora(copy.deepcopy(body), "layers.2", "layers.4")
    constrain(again, ADAPTERS)
    constraints = {path: value for path, value in spec(again).items() if "lora" in path}
    release(again, "**.lora_*.default.weight").load_adapter(tmp_path, "default")
    constrain(again, constraints)
    assert spec(again) == spec(model)
    torch.testing.assert_close(again(x), model(x))


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_constrained_biases_are_trained_once_they_require_a_gradient(bias):
    model = lora(constrain(release(Body()), "layers.6.bias", "ball"), "layers.6", bias=bias)
    layer = model.base_model.model.layers[6].base_layer
    layer.parametrizations.bias.requires_grad_(True)
    with trains(model):
        fit(model)


def test_adapters_are_merged_into_what_can_take_them():
    body = Body()
    x, _ = data()
    model = lora(release(copy.deepcopy(body)), *LAYERS)
    fit(model)
    expected = model(x)
    torch.testing.assert_close(model.merge_and_unload()(x), expected)


@pytest.mark.parametrize("safe", [False, True])
def test_merging_into_constrained_tensors_is_refused(safe):
    model = lora(Body(), *LAYERS)
    fit(model)
    with pytest.raises((ValueError, RuntimeError), match="release|writable"):
        model.merge_and_unload(safe_merge=safe)(data()[0])


def test_each_layer_that_lost_a_merge_says_so():
    model = lora(Body(), *LAYERS)
    fit(model)
    before, x = values(model), data()[0]
    model.merge_adapter()
    for layer in LAYERS:
        with pytest.raises(RuntimeError, match=rf"'base_model.model.{layer}.base_layer.weight' .*"):
            model(x)
    after = values(model)
    assert all(torch.equal(after[path], value) for path, value in before.items())


@pytest.mark.parametrize(
    "chosen",
    [
        {"target_modules": "0|2"},
        {"target_modules": ["0", "2"], "exclude_modules": r".*parametrizations\..*"},
        {"target_modules": "all-linear", "exclude_modules": r".*parametrizations\..*"},
    ],
    ids=str,
)
def test_layers_that_are_named_by_a_number(chosen):
    body = network()
    x, _ = data()
    expected, before = body(x), values(body)
    model = get_peft_model(body, LoraConfig(r=2, **chosen))
    torch.testing.assert_close(model(x), expected)
    fit(model)
    assert any("base_model.model.2.lora" in name for name, _ in model.named_parameters())
    assert not torch.allclose(model(x), expected)
    for value, old in zip(values(body).values(), before.values(), strict=True):
        assert torch.equal(value, old)


def test_lora_over_a_language_model(tmp_path):
    config = GPT2Config(vocab_size=32, n_positions=16, n_embd=16, n_layer=1, n_head=2)
    plain = GPT2LMHeadModel(config)
    body = constrain(copy.deepcopy(plain), "transformer.wte.weight", "sphere")
    model = get_peft_model(body, LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True))
    ids = torch.arange(8)[None]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    before = values(body)
    for _ in range(2):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    for path, value in values(body).items():
        assert torch.equal(value, before[path.replace("base_model.model.", "")])
    model.save_pretrained(tmp_path)
    twin = constrain(copy.deepcopy(plain), "transformer.wte.weight", "sphere")
    again = PeftModel.from_pretrained(twin, tmp_path).eval()
    torch.testing.assert_close(again(ids).logits, model.eval()(ids).logits)


def test_a_head_that_is_trained_beside_the_adapters(tmp_path):
    body = Body()
    model = lora(copy.deepcopy(body), "layers.2", modules_to_save=["layers.6"])
    x, _ = data()
    torch.testing.assert_close(model(x), body(x))
    fit(model)
    assert_feasible(model)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(copy.deepcopy(body), tmp_path)
    torch.testing.assert_close(again(x), model(x))


def test_a_frozen_base_is_trained_again():
    model = lora(Body(), "layers.2").unload()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    with trains(model):
        fit(model)


LORA = """
"**.lora_A.*.weight": orthogonal
"**.layers.1.**.v_proj.lora_A.*.weight": null
"**.{q,k}_proj.lora_B.*.weight": max_norm(bound=0.5)
"""


def adapted(body):
    settings = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    return constrain(get_peft_model(copy.deepcopy(body), settings), yaml.safe_load(LORA))


def test_orthogonal_adapters_from_a_config_to_a_merged_model(tmp_path):
    body = llama()
    model = adapted(body)
    # B is zero at first, and still so.
    torch.testing.assert_close(logits(model), logits(body), rtol=0, atol=0)
    assert len(spec(model)) == 5
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    with trains(model):
        Trainer(model, arguments(tmp_path / "run", 4), train_dataset=Sentences()).train()
    assert all(torch.equal(model.get_parameter(name), p) for name, p in frozen.items())
    for path, value in values(model).items():
        if "lora_A" in path:
            torch.testing.assert_close(value @ value.T, torch.eye(4), rtol=0, atol=1e-5)
    # The constraints are resumed from a checkpoint of the Trainer, by the same config.
    again = adapted(body)
    checkpoint = str(tmp_path / "run" / "checkpoint-2")
    trainer = Trainer(again, arguments(tmp_path / "more", 4), train_dataset=Sentences())
    trainer.train(resume_from_checkpoint=checkpoint)
    same(again, model, 1e-5)
    # All of it in one file, into the plain adapters.
    save(model, tmp_path)
    fresh = get_peft_model(copy.deepcopy(body), model.peft_config["default"])
    same(load(tmp_path, fresh), model)
    expected = logits(model)
    assert not torch.allclose(expected, logits(body), atol=1e-4)
    # An adapter to be published is plain: anybody loads it, and merges it.
    release(model).save_pretrained(tmp_path / "adapter")
    keys = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert len(keys) == 8 and all(k.endswith((".lora_A.weight", ".lora_B.weight")) for k in keys)
    served = PeftModel.from_pretrained(copy.deepcopy(body), tmp_path / "adapter")
    torch.testing.assert_close(logits(served), expected)
    merged = served.merge_and_unload()
    assert type(merged) is type(body)
    torch.testing.assert_close(logits(merged), expected)


def test_constrained_adapters_that_are_saved_as_they_are_are_told_to_be_missing(tmp_path):
    body = llama()
    adapted(body).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"Found missing adapter keys.*lora_A.default.weight"):
        PeftModel.from_pretrained(copy.deepcopy(body), tmp_path)


def test_adapters_constrained_before_they_exist():
    with pytest.raises(ValueError, match=r"No tensor of LlamaForCausalLM matches '\*\*.lora_A"):
        constrain(llama(), "**.lora_A.*.weight", "orthogonal")
    model = get_peft_model(llama(), LoraConfig(r=32, target_modules=["q_proj"]))
    constrain(model, "**.lora_A.*.weight", "orthogonal")
    # More rows than columns: the columns are orthonormal.
    value = next(iter(values(model).values()))
    torch.testing.assert_close(value.T @ value, torch.eye(16), rtol=0, atol=1e-5)
