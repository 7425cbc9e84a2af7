"""accelerate: prepare, save_state and load_state, offloading to the CPU and to a disk."""

import copy

import pytest
import torch
from accelerate import Accelerator, cpu_offload, disk_offload, init_empty_weights
from accelerate.utils import find_tied_parameters, set_module_tensor_to_device
from network import CONSTRAINTS, data, network, plain
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from trained import same, trains

from constrained import assert_feasible, baked_state_dict, constrain, spec


def prepared(model):
    accelerator = Accelerator(cpu=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    loader = DataLoader(TensorDataset(*data()), batch_size=8)
    return accelerator, *accelerator.prepare(model, optimizer, loader)


def fit(accelerator, model, optimizer, loader):
    for x, y in loader:
        with accelerator.accumulate(model):
            optimizer.zero_grad()
            accelerator.backward((model(x) - y).square().mean())
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()


def test_prepared_models_train():
    model = network()
    accelerator, *parts = prepared(model)
    with trains(model):
        fit(accelerator, *parts)
    assert accelerator.unwrap_model(parts[0]) is model


def test_a_saved_state_is_resumed(tmp_path):
    model, twin = network(), network()
    accelerator, *parts = prepared(model)
    fit(accelerator, *parts)
    accelerator.save_state(tmp_path)
    fit(accelerator, *parts)
    other, *others = prepared(twin)
    other.load_state(tmp_path)
    fit(other, *others)
    same(model, twin, 1e-5)


def test_a_saved_model_is_loaded(tmp_path):
    model = network()
    Accelerator(cpu=True).save_model(model, tmp_path)
    from safetensors.torch import load_file

    twin = network()
    twin.load_state_dict(load_file(tmp_path / "model.safetensors"))
    same(model, twin)


@pytest.mark.parametrize("offload", ["cpu", "disk"])
def test_offloaded_models_serve(offload, tmp_path):
    model = network().eval()
    x, _ = data()
    expected = model(x)
    twin = copy.deepcopy(model)
    if offload == "cpu":
        cpu_offload(twin, torch.device("cpu"))
    else:
        disk_offload(twin, str(tmp_path), torch.device("cpu"))
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(twin(x), expected)


def test_empty_weights_are_filled():
    expected = network()
    with init_empty_weights():
        model = constrain(plain(), spec(expected))
    for name, tensor in expected.state_dict().items():
        set_module_tensor_to_device(model, name, "cpu", value=tensor)
    same(model, expected)
    x, _ = data()
    assert torch.equal(model(x), expected(x))


def test_empty_weights_take_a_plain_checkpoint():
    expected = network()
    with init_empty_weights():
        model = constrain(plain(), CONSTRAINTS)
    model.load_state_dict(baked_state_dict(expected), assign=True)
    assert_feasible(model)
    x, _ = data()
    torch.testing.assert_close(model(x), expected(x))


def test_tied_parameters_are_found():
    model = nn.ModuleDict({"a": nn.Embedding(4, 3), "b": nn.Linear(3, 4, bias=False)})
    model["b"].weight = model["a"].weight
    constrain(model, "a.weight", "sphere")
    original = "parametrizations.weight.original"
    assert [sorted(tied) for tied in find_tied_parameters(model)] in (
        [[f"a.{original}", f"b.{original}"]],
        [["a.weight", "b.weight"]],
    )
