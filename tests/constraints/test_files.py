"""Every constraint of the catalogue goes through a file: weights, values and spec, bit for bit."""

import json

import pytest
import torch
from safetensors import safe_open
from torch import nn

import constrained
from constrained import constrain, get, names

EXAMPLES = [
    (name, i, dtype)
    for name in names()
    for i in range(len(get(name).examples))
    for dtype in (torch.float32, torch.bfloat16, torch.complex64, torch.complex128)
    # The others share their code with these.
    if dtype is torch.float32 or (i == 0 and (get(name).complex or not dtype.is_complex))
]


class Held(nn.Module):
    def __init__(self, shape, dtype):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape).to(dtype))
        self.gain = nn.Parameter(torch.randn(2))


@pytest.mark.filterwarnings("ignore:.*next to the boundary")
@pytest.mark.parametrize(
    ("name", "number", "dtype"),
    EXAMPLES,
    ids=[f"{n}-{i}-{str(d).removeprefix('torch.')}" for n, i, d in EXAMPLES],
)
def test_a_trained_tensor_is_the_same_in_a_new_model(name, number, dtype, tmp_path):
    arguments, shape = get(name).examples[number]
    model = constrain(Held(shape, dtype), "weight", {"name": name, **arguments}, init="sample")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(2):
        optimizer.zero_grad()
        (model.weight - 1).abs().pow(2).sum().backward()
        optimizer.step()
    constrained.save(model, tmp_path)
    found = constrained.load(tmp_path, Held(shape, dtype))
    state, loaded = model.state_dict(), found.state_dict()
    assert list(state) == list(loaded)
    assert all(torch.equal(state[key], loaded[key]) for key in state)
    assert {k: t.dtype for k, t in state.items()} == {k: t.dtype for k, t in loaded.items()}
    assert torch.equal(found.weight, model.weight)
    assert json.dumps(constrained.spec(found)) == json.dumps(constrained.spec(model))
    # The spec in the file, which has all arguments, is one that `constrain` takes.
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        spec = json.loads(file.metadata()["constrained"])["constraints"]
    again = constrain(Held(shape, dtype), spec, init="sample")
    assert constrained.spec(again) == constrained.spec(model)
