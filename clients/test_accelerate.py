"""accelerate: prepare, save_state and load_state, offloading to the CPU and to a disk."""

import copy

import pytest
import torch
from accelerate import (
    Accelerator,
    cpu_offload,
    disk_offload,
    init_empty_weights,
    load_checkpoint_and_dispatch,
    load_checkpoint_in_model,
)
from accelerate.hooks import remove_hook_from_submodules
from accelerate.utils import find_tied_parameters, set_module_tensor_to_device
from network import CONSTRAINTS, data, network, plain
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from trained import same, trains

from constrained import assert_feasible, baked_state_dict, constrain, release, spec, violations


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


@pytest.mark.parametrize("offload", ["cpu", "disk"])
@pytest.mark.parametrize("act", [baked_state_dict, release], ids=lambda f: f.__name__)
@pytest.mark.parametrize("bias", [False, True])
def test_what_needs_the_numbers_of_an_offloaded_model_is_refused(offload, act, bias, tmp_path):
    model = nn.Sequential(nn.Linear(4, 4, bias), nn.Linear(4, 4))
    constrain(model, "0.weight", "orthogonal")
    expected = baked_state_dict(model)
    if offload == "cpu":
        cpu_offload(model, torch.device("cpu"))
    else:
        disk_offload(model, str(tmp_path), torch.device("cpu"))
    with pytest.raises(RuntimeError, match="'0.weight' .*offloaded.*remove_hook"):
        act(model)
    assert list(violations(model)) == list(spec(model)) == ["0.weight"]
    remove_hook_from_submodules(model)
    act(model)
    torch.testing.assert_close(baked_state_dict(model), expected)


def test_an_offloaded_model_is_not_constrained():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    x = torch.randn(2, 4)
    expected = model(x)
    cpu_offload(model, torch.device("cpu"))
    for _ in range(2):
        with pytest.raises(RuntimeError, match="'0.weight' .*offloaded.*remove_hook"):
            constrain(model, "0.weight", "orthogonal")
        torch.testing.assert_close(model(x), expected)


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


@pytest.mark.parametrize("more", [{}, {"strict": True}, {"full_state_dict": False}], ids=str)
def test_a_plain_checkpoint_is_loaded_in_place(tmp_path, more):
    model = network()
    Accelerator(cpu=True).save_model(release(copy.deepcopy(model)), tmp_path)
    loaded = network()
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.mul_(0.5)
    load_checkpoint_in_model(loaded, tmp_path, **more)
    same(loaded, model, 1e-5)


def test_a_plain_checkpoint_with_a_map_of_devices_is_loaded_into_a_plain_model(tmp_path):
    model, (x, _) = network(), data()
    Accelerator(cpu=True).save_model(release(copy.deepcopy(model)), tmp_path)
    with init_empty_weights():
        loaded = plain()
    loaded = load_checkpoint_and_dispatch(loaded, tmp_path, device_map={"": "cpu"})
    constrain(loaded, spec(model))
    same(loaded, model, 1e-5)
    torch.testing.assert_close(loaded(x), model(x))
