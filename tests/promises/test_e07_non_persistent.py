"""E07: a buffer that is not part of state dicts stays so."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize as torchs

import constrained.parametrize as ours
from constrained import baked_state_dict, constrain, release
from tests.promises.checkpoints import same
from tests.promises.copies import COPIES
from tests.promises.counting import Anchored
from tests.promises.foreign import Split, Squash

torch_today = pytest.mark.torch_today


class Tables(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("kept", torch.rand(3, 3) / 2)
        self.register_buffer("scratch", torch.rand(3, 3) / 2, persistent=False)


@pytest.mark.parametrize("make", [Squash, Split, Anchored])
def test_e07_register_load_save_remove(make, measured):
    model = Tables()
    for name in ("kept", "scratch"):
        ours.register_parametrization(model, name, make())
    keys, scratch = list(model.state_dict()), model.scratch.clone()
    # Other tensors of the parametrization are in the state dict, as in torch.
    assert not [k for k in keys if "scratch.original" in k]
    assert [k for k in keys if "kept.original" in k]
    model.load_state_dict(model.state_dict())
    assert model.load_state_dict(Tables().state_dict()) == ([], [])
    assert torch.equal(model.scratch, scratch)
    assert list(baked_state_dict(model, everything=True)) == ["kept"]
    with pytest.raises(RuntimeError, match="Unexpected key"):
        model.load_state_dict({"kept": torch.zeros(3, 3), "scratch": torch.zeros(3, 3)})
    for name in ("kept", "scratch"):
        ours.remove_parametrizations(model, name)
    assert list(model.state_dict()) == ["kept"] and torch.equal(model.scratch, scratch)
    measured(f"state dict after removal: {', '.join(model.state_dict())}")


@torch_today
def test_e07_register_and_remove_in_torch_today(measured):
    model = Tables()
    torchs.register_parametrization(model, "scratch", Squash())
    assert "parametrizations.scratch.original" in model.state_dict()
    torchs.remove_parametrizations(model, "scratch")
    assert list(model.state_dict()) == ["kept", "scratch"]
    measured("the buffer is in the state dict, while parametrized and after")


@pytest.mark.parametrize("make_copy", COPIES)
def test_e07_copies(make_copy):
    for spec in ("symmetric", "low_rank(rank=2)"):
        model = make_copy(constrain(Tables(), "scratch", spec))
        assert list(model.state_dict()) == ["kept"]
        assert same(baked_state_dict(model), Tables.state_dict(model))
        assert list(release(model).state_dict()) == ["kept"]
        assert torch.equal(model.scratch, make_copy(model).scratch)


def test_e07_conversion_chains_and_assign():
    model = constrain(Tables(), "scratch", "sphere").double()
    ours.register_parametrization(model, "scratch", Squash(), unsafe=True)
    model.load_state_dict({"kept": torch.zeros(3, 3)}, assign=True)
    assert list(model.state_dict()) == ["kept"]
    twin = copy.copy(model)
    assert list(twin.state_dict()) == ["kept"]
    assert list(release(model).state_dict()) == ["kept"] and model.scratch.dtype == torch.float64
